"""The stored table of measured operators of one runtime on one processor: a JSON file a key."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecompile.errors import InputError
from edgecompile.hostcost.constants import Constants, from_json
from edgecompile.hostcost.cut import Cut
from edgecompile.hostcost.geometry import Place, Work, locate, work
from edgecompile.measure import fingerprint, machine
from edgecompile.store.publish import write_atomic

FORMAT = 1


@dataclass
class Table:
    """Microseconds of a run of each node alone, and what they were measured with.

    `kept` is false for a table that must not be written: somebody else's file, given by hand.
    """

    path: Path
    identity: Mapping[str, Any]
    constants: Constants | None = None
    made: str = ""
    times: dict[str, float] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)
    places: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    what: dict[str, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    kept: bool = True
    _grids: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)

    def add(self, cut: Cut, us: float) -> None:
        """Remember the measured time of a node."""
        key = cut.key
        self.times[key], self.works[key], self.what[key] = us, work(cut, us), cut.describe()
        place = locate(cut, self.constants.block if self.constants else 0)
        if place is not None:
            self._put(key, (place.geometry, place.wide_in, place.wide_out))

    def _put(self, key: str, place: tuple[str, int, int]) -> None:
        self.places[key] = place
        self._grids.setdefault(place[0], {})[place[1:]] = self.times[key]

    def points(self, place: Place) -> Mapping[tuple[int, int], float]:
        """What was measured of a geometry, by input and output width."""
        return self._grids.get(place.geometry, {})

    def save(self) -> None:
        """Write the table, with what another process has added to the file since."""
        if not self.kept:
            return
        other = _read(self.path)
        if other is not None and other["identity"] == dict(self.identity):
            self._take({key: value for key, value in other["nodes"].items() if key not in self.times})
            self.done = {**other["done"], **self.done}
            self.constants = self.constants or (from_json(other["constants"]) if other["constants"] else None)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.made = self.made or now
        body = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "made": self.made,
            "changed": now,
            "machine": machine(),
            "constants": asdict(self.constants) if self.constants else None,
            "done": self.done,
            "nodes": {key: self._row(key) for key in sorted(self.times)},
        }
        write_atomic(self.path, (json.dumps(body, separators=(",", ":")) + "\n").encode())

    def _row(self, key: str) -> list[object]:
        item = self.works[key]
        facts = [item.kind, item.macs, item.weight_bytes, item.moved_bytes]
        return [round(self.times[key], 4), *facts, self.what[key], self.places.get(key)]

    def _take(self, nodes: Mapping[str, Any]) -> None:
        for key, (us, kind, macs, weights, moved, what, place) in nodes.items():
            self.times[key], self.what[key] = float(us), str(what)
            self.works[key] = Work(str(kind), int(macs), int(weights), int(moved), float(us))
            if place is not None:
                self._put(key, (str(place[0]), int(place[1]), int(place[2])))


def identity(threads: int) -> dict[str, Any]:
    """What makes two tables comparable: the runtime, the processor with its instruction sets, the threads."""
    import onnxruntime as ort

    facts = machine()
    return {
        "onnxruntime": ort.__version__,
        "cpu": facts["cpu"],
        "flags": facts["flags"],
        "fingerprint": fingerprint(),
        "threads": threads,
    }


def default_folder() -> Path:
    """Where the tables of this user are."""
    import platformdirs

    return platformdirs.user_data_path("edgecompile") / "host"


def path_for(folder: Path, who: Mapping[str, Any]) -> Path:
    """One file a key."""
    return folder / f"ort-{who['onnxruntime']}-{who['fingerprint']}-t{who['threads']}.json"


def load(folder: Path, threads: int) -> Table:
    """The table of this runtime, processor and thread count; an empty one, with notes that say why, otherwise."""
    who = identity(threads)
    path = path_for(folder, who)
    found, notes = _checked(path)
    if found is not None and found["identity"] != who:
        notes.append(f"{path.name}: is of {_named(found['identity'])}; ignored and made anew")
        found = None
    if found is None and not notes and folder.is_dir():
        others = sorted(p.name for p in folder.glob("ort-*.json"))
        if others:
            notes.append(
                f"ignored {len(others)} profiles of other versions, processors or threads: {', '.join(others[:3])}"
            )
    return _filled(Table(path, who, notes=notes), found)


def load_file(path: Path, threads: int) -> Table:
    """A table given by hand: used when it fits this machine, and never written."""
    if not path.is_file():
        raise InputError(f"{path}: no such table; make one with `edgecompile profile`, or leave the option out")
    who = identity(threads)
    found, notes = _checked(path)
    if found is not None and found["identity"] != who:
        notes.append(f"{path.name}: is of {_named(found['identity'])}, this is {_named(who)}; ignored")
        found = None
    return _filled(Table(path, who, notes=notes, kept=found is not None), found)


def _filled(table: Table, found: Mapping[str, Any] | None) -> Table:
    if found is not None:
        table.constants = from_json(found["constants"]) if found["constants"] else None
        table.made, table.done = str(found["made"]), dict(found["done"])
        table._take(found["nodes"])
    return table


def _named(who: Mapping[str, Any]) -> str:
    return f"ONNX Runtime {who.get('onnxruntime')} on {who.get('cpu')} with {who.get('threads')} threads"


def _checked(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The content of a table file; a damaged one is moved aside and named in the notes."""
    if not path.is_file():
        return None, []
    found = _read(path)
    if found is not None:
        return found, []
    aside = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(OSError):  # a folder that cannot be written: the note is what matters
        os.replace(path, aside)
    return None, [f"{path.name}: damaged, moved to {aside.name} and made anew"]


def _read(path: Path) -> dict[str, Any] | None:
    """A whole table file, or None."""
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            return None
        rows: Callable[[Any], bool] = lambda row: len(row) == 7 and isinstance(row[0], float | int)  # noqa: E731
        whole = all(rows(row) for row in found["nodes"].values()) and isinstance(found["identity"], dict)
        if found["constants"]:
            from_json(found["constants"])
        return found if whole and isinstance(found["done"], dict) and found["made"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
