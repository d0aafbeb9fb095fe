"""What `edgecompile doctor` looks at: packages against the versions this release wants, extras, and the processor."""

from __future__ import annotations

import importlib.metadata
import re
import sys

Row = tuple[str, str, str, str]
"""State (ok, FAIL, note), what was looked at, what was found, what to do about it."""

_CLASHES = (
    (
        "apache-tvm-ffi",
        "0.1.14.post0",
        "apache-tvm",
        "later ones crash the tuner: pip install 'edgecompile[tvm]'",
    ),
)


def findings() -> list[Row]:
    """Every check; a row a package, extra, CPU feature and folder."""
    return [*_python(), *_required(), *_extras(), *_cpu(), *_cache()]


def _python() -> list[Row]:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return [("ok" if good else "FAIL", "python", found, "" if good else "install Python 3.11 or newer")]


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(p) for p in re.findall(r"\d+", version.split("+")[0])[:3])


def _satisfies(version: str, wanted: str) -> bool:
    for clause in filter(None, wanted.split(",")):
        match = re.fullmatch(r"\s*(>=|<=|==|<|>)\s*([\w.]+)\s*", clause)
        if match is None:
            continue
        if match[1] == "==":
            if version.split("+")[0] != match[2]:
                return False
            continue
        a, b = _parts(version), _parts(match[2])
        good = {">=": a >= b, "<=": a <= b, "<": a < b, ">": a > b}[match[1]]
        if not good:
            return False
    return True


def _requirements() -> list[tuple[str, str, str | None]]:
    """(package, version specification, extra or None) of the installed edgecompile; none when it runs uninstalled."""
    try:
        lines = importlib.metadata.requires("edgecompile") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;.*extra\s*==\s*['\"]([\w-]+)['\"])?", line)
        if match and match[1].lower() != "edgecompile":
            found.append((match[1], match[2].strip(), match[3]))
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required() -> list[Row]:
    rows: list[Row] = []
    for package, wanted, extra in _requirements():
        if extra is not None:
            continue
        version = _version(package)
        if version is None:
            rows.append(("FAIL", package, "not installed", f"pip install '{package}{wanted}'"))
        elif not _satisfies(version, wanted):
            rows.append(("FAIL", package, version, f"wants {wanted}: pip install '{package}{wanted}'"))
        else:
            rows.append(("ok", package, version, ""))
    if not rows:
        rows.append(("note", "edgecompile", "runs from a checkout that is not installed", "pip install -e ."))
    return rows


def _extras() -> list[Row]:
    rows: list[Row] = []
    by_extra: dict[str, list[tuple[str, str]]] = {}
    for package, wanted, extra in _requirements():
        if extra is not None and extra not in ("dev", "all"):
            by_extra.setdefault(extra, []).append((package, wanted))
    for extra, packages in sorted(by_extra.items()):
        missing = [p for p, _ in packages if _version(p) is None]
        wrong = [
            f"{p} {_version(p)}" for p, w in packages if _version(p) is not None and not _satisfies(str(_version(p)), w)
        ]
        if missing:
            rows.append(
                (
                    "note",
                    f"extra {extra}",
                    f"without {', '.join(missing)}",
                    f"pip install 'edgecompile[{extra}]'",
                )
            )
        elif wrong:
            rows.append(("FAIL", f"extra {extra}", ", ".join(wrong), f"pip install 'edgecompile[{extra}]'"))
        else:
            rows.append(("ok", f"extra {extra}", "installed", ""))
    for package, only, beside, why in _CLASHES:
        if _version(beside) is not None and _version(package) not in (None, only):
            rows.append(("FAIL", package, str(_version(package)), why))
    return rows


def _cpu() -> list[Row]:
    from edgecompile.measure import machine

    facts = machine()
    flags = [str(f) for f in facts["flags"]]  # type: ignore[attr-defined]
    vnni = any(f in flags for f in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))
    how = "u8 x s8 products are exact" if vnni else "u8 x s8 saturates: quantize uses seven-bit weights here"
    return [
        ("ok", "processor", f"{facts['cpu']}, {facts['cores']} cores", ""),
        ("ok" if vnni else "note", "INT8", ", ".join(flags) or "no flags known", how),
    ]


def _cache() -> list[Row]:
    import shutil

    from edgecompile.store import Cache

    root = Cache().root
    base = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(base).free / 1e9
    state = "ok" if free > 2 else "FAIL"
    return [
        (
            state,
            "cache folder",
            f"{root}, {free:.1f} GB free",
            "" if free > 2 else "make room: builds need about 2 GB",
        )
    ]
