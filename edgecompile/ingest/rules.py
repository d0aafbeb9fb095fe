"""The safety rules of ingest, each with a stable id, and how a foreign name is printed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgecompile.errors import InputError

RULES: Mapping[str, str] = MappingProxyType(
    {
        "EC-IN-001": "A model file, or the sum of the files that it is made of, may not be larger than the limit.",
        "EC-IN-002": "External data of an ONNX file is a plain file name ([A-Za-z0-9._-]) in the model's own folder.",
        "EC-IN-003": "External data is a regular file of its own: no link, hard link, device, pipe or the"
        " model itself.",
        "EC-IN-004": "External data lies within its file: offset and length are not negative, long enough,"
        " and do not overlap in part.",
        "EC-IN-005": "A graph may not have more nodes than the limit, functions and subgraphs counted in full.",
        "EC-IN-006": "Graphs, functions, messages and JSON may not nest deeper than the limit.",
        "EC-IN-007": "The tensors that a file declares, stored or made by ConstantOfShape, Expand and Tile,"
        " are bounded.",
        "EC-IN-008": "A Loop with a constant trip count may not exceed the limit; other loops meet the wall clock.",
        "EC-IN-009": "Names may not be longer than the limit.",
        "EC-IN-010": "Members of a torch archive are stored, never compressed; of an .npz, stored or deflated.",
        "EC-IN-011": "A zip member's name is a relative path without '..', backslash or control characters.",
        "EC-IN-012": "No two zip members may have the same name, whatever their case.",
        "EC-IN-013": "Zip members are plain files: no links, devices, folders or encryption.",
        "EC-IN-014": "A zip file may not have more members than the limit.",
        "EC-IN-015": "A zip file may not declare many times its own size.",
        "EC-IN-016": "A zip file reads the same for every reader: nothing before, between or after its members.",
        "EC-IN-020": "A pickle may name only what weights need: tensors, storages, dtypes, OrderedDict.",
        "EC-IN-021": "A pickle may use only the instructions that torch.load(weights_only=True) knows.",
        "EC-IN-022": "Weights are a zip file of torch.save: old pickles and tar files are not read.",
        "EC-IN-023": "A pickled module is a program: weights are given as a state dict.",
        "EC-IN-024": "TorchScript and torch.package archives hold programs that run while they load.",
        "EC-IN-025": "A .pt2 file may not keep weights or constants as pickles.",
        "EC-IN-026": "A .pt2 file may not hold compiled code (AOTInductor, ExecuTorch).",
        "EC-IN-027": "A .pt2 file may not hold custom script objects or opaque constants.",
        "EC-IN-028": "Symbolic sizes in a .pt2 file are plain arithmetic on symbols, since torch evaluates them.",
        "EC-IN-029": "Names in a .pt2 graph are identifiers, since torch writes them into Python code.",
        "EC-IN-030": "A .pt2 graph may call only tensor operators and arithmetic on sizes.",
        "EC-IN-031": "Input and output structures in a .pt2 file are tuples, lists and dicts: torch imports"
        " the modules that others name.",
        "EC-IN-032": "Guards in a .pt2 file are plain comparisons of sizes, since torch runs them as Python code.",
        "EC-IN-033": "A torch archive may hold only the members that torch itself writes.",
        "EC-IN-040": "An array file may not hold Python objects.",
        "EC-IN-041": "Pickles and JSON in a model file, and headers of arrays, may not be larger than the limit.",
        "EC-IN-050": "What a parsing child hands back are plain files in its own folder.",
    }
)
"""Rule id to one line of explanation."""

_SHOWN = 80


def text_safe(name: str, limit: int = _SHOWN) -> str:
    """A foreign name as printable text: control and bidirectional characters escaped, cut to `limit`."""
    shown = "".join(c if _printable(c) else _escaped(c) for c in name[:limit])
    return shown if len(name) <= limit else f"{shown}... ({len(name)} characters)"


def _printable(character: str) -> bool:
    return character.isprintable()  # spaces other than the plain one are not


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def corrupt(where: str, what: str) -> InputError:
    """The error of a file that is not what it should be."""
    return InputError(f"{where}: truncated or corrupt ({what}); copy or export the file again")
