"""Vet weights saved by `torch.save`: the zip form, its members and its pickle."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgecompile.ingest.limits import Gate, Vetted
from edgecompile.ingest.rules import corrupt, text_safe
from edgecompile.ingest.source import Source
from edgecompile.ingest.vet_pickle import RESAVE_MODULE, RESAVE_WEIGHTS, scan
from edgecompile.ingest.vet_zip import Member, content

_MEMBER = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/(serialization_id|version)"
)


def root_of(names: Mapping[str, Member]) -> str | None:
    """The one folder that all members share, with its slash; None when they do not."""
    roots = {name.partition("/")[0] + "/" if "/" in name else "" for name in names}
    return roots.pop() if len(roots) == 1 else None


def is_program_archive(inner: frozenset[str]) -> bool:
    """Whether the member names (below the root) are those of TorchScript or torch.package."""
    script = "constants.pkl" in inner or any(name.startswith("code/") for name in inner)
    return script or ".data/extern_modules" in inner or ".data/python_version" in inner


def vet_torch_zip(source: Source, members: Mapping[str, Member], root: str, gate: Gate, place: str = "") -> Vetted:
    """Vet an archive with `data.pkl`; storages are counted, shapes left to the child (views may be larger).

    `place` names the member when the archive lies within another one.
    """
    inner = frozenset(name.removeprefix(root) for name in members)
    if is_program_archive(inner):
        value = "TorchScript or torch.package archive"
        gate.forbid("EC-IN-024", place, "weights only", value, RESAVE_MODULE)
    if "data.pkl" not in inner:
        raise corrupt(source.where, "no data.pkl in it")
    for name in sorted(inner):
        if not _MEMBER.fullmatch(name):
            value = f"unexpected member '{text_safe(name)}'"
            gate.refuse("EC-IN-033", place, "what torch.save writes", value, RESAVE_WEIGHTS)
    pickled = members[root + "data.pkl"]
    gate.at_most("EC-IN-041", "bytes of pickle", "pickle_bytes", pickled.size, place or "data.pkl")
    scan(content(source, pickled), place or "data.pkl", gate)
    declared = sum(m.size for name, m in members.items() if name.startswith(f"{root}data/"))
    return gate.vetted("torch_weights", declared)


def vet_embedded(data: bytes, place: str, gate: Gate) -> None:
    """Vet the bytes of an old pickle or a tar file: refused, unless the file is trusted."""
    form = "tar file" if data[257:262] == b"ustar" else "pickle without a zip file around it"
    gate.refuse("EC-IN-022", place, "the zip form of torch.save", f"a {form}", RESAVE_WEIGHTS)
