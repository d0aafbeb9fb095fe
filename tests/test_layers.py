"""The shape of the tree: imports point upward only, and packaging, links and folders agree."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = ROOT / "edgecompile"
ORDER = [
    "errors", "silence", "spec", "reference", "functional", "program", "program_file", "rewrite", "axes", "ingest",
    "data", "teacher", "device", "store", "measure", "cost", "hostcost", "plan", "remote", "target",
    "pass_manager", "verify", "report", "building", "matrix", "cli",
]  # fmt: skip
FOLDERS = ("passes", "targets", "models", "device_profiles")


def _imports(path: Path, lazy: bool) -> set[str]:
    """Words behind `edgecompile.` that a file imports; with `lazy`, inside functions too."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgecompile"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("edgecompile.")}
    return found


def test_the_core_imports_only_what_stands_above() -> None:
    modules = {p.stem if p.suffix == ".py" else p.name for p in CORE.iterdir() if not p.is_symlink()}
    modules -= {"__init__", "__main__", "__pycache__", "py.typed"}
    assert modules == set(ORDER), "add a new core module to ORDER, where it belongs"
    for index, name in enumerate(ORDER):
        files = [CORE / f"{name}.py"] if (CORE / f"{name}.py").exists() else sorted((CORE / name).rglob("*.py"))
        for file in files:
            below = _imports(file, lazy=False) - set(ORDER[: index + 1]) - {"__version__"}
            assert not below, f"{file.relative_to(ROOT)} imports {below}, which stand below {name}"


def test_passes_targets_and_models_do_not_import_each_other() -> None:
    for folder in ("passes", "targets", "models"):
        for file in (ROOT / folder).rglob("*.py"):
            others = _imports(file, lazy=True) & (set(FOLDERS) - {folder})
            assert not others, f"{folder}/{file.name} imports {others}"


def test_folders_links_and_packages_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["setuptools"]["packages"])
    mapping = project["tool"]["setuptools"]["package-dir"]
    for name in FOLDERS:
        link = CORE / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
    real = {
        f"edgecompile.{p.parent.relative_to(CORE).as_posix().replace('/', '.')}".rstrip(".")
        for p in CORE.rglob("__init__.py")
    }
    linked = {
        f"edgecompile.{p.parent.relative_to(ROOT).as_posix().replace('/', '.')}"
        for f in FOLDERS
        for p in (ROOT / f).rglob("__init__.py")
    }
    assert packages == real | linked
    assert {f"edgecompile.{k}" for k in FOLDERS} <= set(mapping)
    assert all((ROOT / folder).is_dir() for folder in mapping.values())


def test_nothing_generic_is_installed_at_top_level() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert all(p == "edgecompile" or p.startswith("edgecompile.") for p in project["tool"]["setuptools"]["packages"])


def test_files_stay_small() -> None:
    """A file over 300 lines is usually two."""
    files = [p for f in (CORE, *(ROOT / name for name in FOLDERS)) for p in f.rglob("*.py") if not p.is_symlink()]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text(encoding="utf-8").splitlines())) > 320}
    assert not long


def test_no_model_file_is_unpickled() -> None:
    """`weights_only=False` and pickle.load stand nowhere but behind `--trust-model`."""
    found = []
    for folder in (CORE, *(ROOT / name for name in FOLDERS)):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if any(word in text for word in ("weights_only=False", "pickle.load", "shell=True", "os.system(")):
                found.append(path.name)
    assert not found
