"""Labels of pictures and texts: a file with a label a line, or one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgecompile.errors import InputError

_HEADERS = ("label", "class", "target", "y")


def read_lines(path: Path, limit_bytes: int = 64 << 20) -> list[str]:
    """The lines of a UTF-8 text file; raises `InputError` with the line where it is none."""
    try:
        data = path.read_bytes() if path.stat().st_size <= limit_bytes else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if data is None:
        raise InputError(f"{path}: larger than {limit_bytes} bytes: give a part of it")
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8 text: save the file as UTF-8") from None


def label_files(path: Path, folder: Path, files: Sequence[Path], classes: int | None) -> tuple[int, ...]:
    """One label a file, from lines `name label` or `name,label` (names relative to the folder, or bare)."""
    by_name: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        comma = "," in line
        name, _, word = (
            part.strip().strip('"') for part in (line.rpartition(",") if comma else line.strip().rpartition(" "))
        )
        if "\t" in line and not comma:
            name, _, word = (part.strip() for part in line.rpartition("\t"))
        if number == 1 and word.lower() in _HEADERS:
            continue
        label = _label(word, f"{path}: line {number}", classes)
        if not name:
            raise InputError(f"{path}: line {number}: {line.strip()[:60]!r} is not 'name label' or 'name,label'")
        if by_name.setdefault(name, (label, number))[0] != label:
            raise InputError(f"{path}: line {number}: {name} has label {label}, and another on line {by_name[name][1]}")
    labels: list[int] = []
    missing: list[str] = []
    used: set[str] = set()
    for file in files:
        relative = file.relative_to(folder).as_posix()
        name = relative if relative in by_name else file.name
        if name in by_name:
            labels.append(by_name[name][0])
            used.add(name)
        else:
            missing.append(relative)
    if missing:
        raise InputError(f"{path}: no label for {len(missing)} of {len(files)} pictures, e.g. {missing[0]}: add them")
    if absent := sorted(set(by_name) - used):
        place = by_name[absent[0]][1]
        raise InputError(
            f"{path}: line {place}: {absent[0]} is not in {folder} ({len(absent)} such): correct the names"
        )
    return tuple(labels)


def label_folders(folder: Path, files: Sequence[Path], classes: int) -> tuple[int, ...] | None:
    """One label a file from the first folder of its path; None when some lie outside, or all in one."""
    parts = [file.relative_to(folder).parts for file in files]
    names = sorted({part[0] for part in parts})
    if len(names) < 2 or any(len(part) < 2 for part in parts):
        return None
    numeric = all(name.isdecimal() for name in names)
    index = {name: int(name) if numeric else place for place, name in enumerate(names)}
    if max(index.values()) >= classes:
        found = f"label {max(index.values())}" if numeric else f"{len(names)} folders"
        raise InputError(
            f"{folder}: {found} for a model of {classes} classes: one folder a class is expected;"
            " put the pictures into one folder if these are not classes"
        )
    return tuple(index[part[0]] for part in parts)


def label_lines(path: Path, count: int, classes: int | None) -> tuple[int, ...]:
    """One integer a line, `count` of them."""
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if len(lines) != count:
        raise InputError(f"{path}: {len(lines)} labels for {count} texts: one a line is expected")
    return tuple(_label(word, f"{path}: line {number}", classes) for number, word in lines)


def _label(word: str, where: str, classes: int | None) -> int:
    try:
        label = int(word)
    except ValueError:
        raise InputError(f"{where}: label {word!r} is not an integer: number the classes from 0") from None
    if label < 0 or (classes is not None and label >= classes):
        most = "" if classes is None else f"..{classes - 1}"
        raise InputError(f"{where}: label {label} is out of range 0{most}: number the classes from 0")
    return label
