"""Vet a `.pt2` archive of `torch.export.save`: every route by which loading it would run code is closed here.

Five were seen to fire with torch 2.13: pickled sample inputs, `use_pickle` weights, symbolic sizes
(`sympify`), structures that name an enum (`importlib`), and guards (`exec`, when the program is unlifted).
Names that torch writes into generated code, and operators that it looks up in its own module, are checked for
the same reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgecompile.ingest.limits import Gate, Vetted
from edgecompile.ingest.pt2_text import guard_fault, operator_fault, structure_fault, symbolic_fault
from edgecompile.ingest.rules import corrupt, text_safe
from edgecompile.ingest.source import Source
from edgecompile.ingest.vet_pt import root_of, vet_embedded, vet_torch_zip
from edgecompile.ingest.vet_zip import Member, content
from edgecompile.ingest.vet_zip import members as zip_members

_REEXPORT = "export the model again with torch.export.save from torch 2.13, with tensors as example inputs"
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
    r"|data/(weights/weight|constants/tensor)_\d+|extra/.+|extra_files/.+"
)
_PICKLED = re.compile(
    r"data/sample_inputs/[^/]+\.pt|data/(weights|constants)/[^/]+\.pt"
    r"|serialized_(state_dict|constants|example_inputs)\.(pt|json)"
)
_CONFIG = re.compile(r"data/(weights|constants)/[^/]+_config\.json")
_MODEL = re.compile(r"models/[^/]+\.json|serialized_exported_program\.json")
_COMPILED = re.compile(r"data/(aotinductor|executorch|mtia)/.*|.*\.(so|o|cpp|h|cubin|ptx|hsaco|dll|dylib|pyd|pte)")
_CUSTOM = re.compile(r"data/constants/(custom_obj|opaque_obj)_.*")
_IDENTIFIER = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*)?")
_DOTTED = re.compile(r"[^\x00-\x1f\x7f\"'\\{}]*")
_DOTTED_KEYS = frozenset(
    {"fqn", "parameter_name", "buffer_name", "tensor_constant_name", "user_input_name", "path_name"}
)
_VALUE_TABLES = frozenset({"tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"})


def is_pt2(inner: frozenset[str]) -> bool:
    """Whether member names (below the root) are those of a .pt2 file, new or old layout."""
    return any(_MODEL.fullmatch(name) for name in inner) or "archive_format" in inner


def vet_pt2(source: Source, members: Mapping[str, Member], root: str, gate: Gate) -> Vetted:
    """Vet all members of the archive."""
    models = 0
    for path, member in members.items():
        name = path.removeprefix(root)
        shown = text_safe(name)
        if _COMPILED.fullmatch(name):
            gate.refuse("EC-IN-026", "", "graphs and weights only", f"compiled code '{shown}'", _REEXPORT)
        elif _CUSTOM.fullmatch(name):
            gate.refuse("EC-IN-027", "", "tensors only", f"custom object '{shown}'", _REEXPORT)
        elif _MODEL.fullmatch(name):
            models += 1
            check_model(_json(source, member, name, gate), name, gate)
        elif _CONFIG.fullmatch(name):
            _check_config(_json(source, member, name, gate), name, gate)
        elif _PICKLED.fullmatch(name):
            gate.at_most("EC-IN-001", "bytes of pickled tensors", "file_bytes", member.size, shown)
            _check_pickled(source, member, name, gate)
        elif not _PLAIN.fullmatch(name):
            gate.refuse("EC-IN-033", "", "what torch.export.save writes", f"unexpected member '{shown}'", _REEXPORT)
    if models != 1:
        raise corrupt(source.where, f"{models} programs in it, one is expected")
    declared = sum(m.size for name, m in members.items() if name.startswith(f"{root}data/"))
    return gate.vetted("pt2", declared)


def _json(source: Source, member: Member, name: str, gate: Gate) -> Any:
    gate.at_most("EC-IN-041", "bytes of JSON", "json_bytes", member.size, name)
    try:
        return json.loads(content(source, member))
    except RecursionError:
        gate.forbid("EC-IN-006", name, f"at most {gate.limits.json_depth} levels", "deeply nested JSON", _REEXPORT)
    except ValueError as error:
        raise corrupt(f"{source.where} ({text_safe(name)})", "not JSON") from error


def _check_pickled(source: Source, member: Member, name: str, gate: Gate) -> None:
    """A `.pt` member is itself a zip file of torch.save, at an offset in the archive."""
    if member.size == 0:
        return
    inner = source.part(member.start, member.size, f"{source.where} ({text_safe(name)})")
    if inner.read(0, min(4, inner.size)) != b"PK\x03\x04":
        vet_embedded(inner.read(0, min(512, inner.size)), name, gate)
        return
    found = zip_members(inner, gate)
    vet_torch_zip(inner, found, root_of(found) or "", gate, text_safe(name))


def _check_config(config: Any, name: str, gate: Gate) -> None:
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise corrupt(f"{gate.where} ({text_safe(name)})", "no table of weights")
    for weight, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("path_name"), str):
            raise corrupt(f"{gate.where} ({text_safe(name)})", f"weight '{text_safe(weight)}' is not described")
        if entry.get("use_pickle") is not False:
            gate.refuse("EC-IN-025", name, "plain bytes", f"'{text_safe(weight)}' kept as a pickle", _REEXPORT)
        if not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            value = f"'{text_safe(weight)}' kept in '{text_safe(entry['path_name'])}'"
            gate.refuse("EC-IN-027", name, "tensors only", value, _REEXPORT)
        _check_name(weight, name, gate, _DOTTED)
        gate.at_most("EC-IN-007", f"elements in '{text_safe(weight)}'", "elements", _elements(entry), name)


def _elements(entry: dict[str, Any]) -> int:
    """Elements of a weight, as far as its sizes are fixed numbers."""
    match entry:
        case {"tensor_meta": {"sizes": list(sizes)}}:
            elements = 1
            for size in sizes[:64]:
                match size:
                    case {"as_int": int(fixed)}:
                        elements *= max(fixed, 0)
            return elements
    return 0


def check_model(model: Any, name: str, gate: Gate) -> None:
    """Walk the whole JSON once, without recursion, and check every string that torch would evaluate."""
    if not isinstance(model, dict) or not isinstance(model.get("graph_module"), dict):
        raise corrupt(f"{gate.where} ({text_safe(name)})", "no graph in it")
    for symbol in _mapping(model.get("range_constraints"), name, gate):
        _check_symbolic(symbol, name, gate)
    for guard in _listed(model.get("guards_code")):
        if fault := guard_fault(_string(guard), gate.limits):
            value = f"guard with {text_safe(fault)}"
            gate.refuse("EC-IN-032", name, "comparisons of sizes", value, _REEXPORT)
    nodes = 0
    stack: list[tuple[Any, int]] = [(model["graph_module"], 1)]
    while stack:
        value, depth = stack.pop()
        gate.at_most("EC-IN-006", "levels of JSON", "json_depth", depth, name)
        if isinstance(value, list):
            stack += [(item, depth + 1) for item in value if isinstance(item, (dict, list))]
        else:
            nodes += "target" in value
            gate.at_most("EC-IN-005", "nodes", "nodes", nodes, name)
            stack += _check_object(value, depth, name, gate)


def _check_object(value: dict[str, Any], depth: int, place: str, gate: Gate) -> list[tuple[Any, int]]:
    """Check the strings of one JSON object by their keys; the values that are still to be walked."""
    further: list[tuple[Any, int]] = []
    for key, item in value.items():
        match key:
            case "expr_str":
                _check_symbolic(item, place, gate)
            case "target" | "as_operator":
                if fault := operator_fault(_string(item)):
                    shown = f"{fault} '{text_safe(_string(item))}'"
                    gate.refuse("EC-IN-030", place, "tensor operators", shown, _REEXPORT)
            case "in_spec" | "out_spec":
                if fault := structure_fault(_string(item), gate.limits):
                    shown = f"structure with {text_safe(fault)}"
                    gate.refuse("EC-IN-031", place, "tuples, lists and dicts", shown, _REEXPORT)
            case "name" | "as_name":
                _check_name(item, place, gate, _IDENTIFIER)
            case "forward_arg_names":
                for argument in _listed(item):
                    _check_name(argument, place, gate, _IDENTIFIER)
            case "as_custom_obj" | "custom_obj" | "custom_obj_values" if item:
                gate.refuse("EC-IN-027", place, "tensors only", "a graph with custom objects", _REEXPORT)
            case "metadata":
                pass  # text for people: never evaluated
            case _ if key in _DOTTED_KEYS:
                _check_name(item, place, gate, _DOTTED)
            case _ if isinstance(item, (dict, list)):
                for name in item if key in _VALUE_TABLES and isinstance(item, dict) else ():
                    _check_name(name, place, gate, _IDENTIFIER)
                further.append((item, depth + 1))
    return further


def _check_symbolic(text: object, place: str, gate: Gate) -> None:
    if fault := symbolic_fault(_string(text), gate.limits):
        value = f"symbolic size with {text_safe(fault)}"
        gate.refuse("EC-IN-028", place, "arithmetic on symbols", value, _REEXPORT)


def _check_name(name: object, place: str, gate: Gate, pattern: re.Pattern[str]) -> None:
    text = _string(name)
    gate.at_most("EC-IN-009", "characters of a name", "name_length", len(text), place)
    if not pattern.fullmatch(text):
        gate.refuse("EC-IN-029", place, "identifiers", f"name '{text_safe(text)}'", _REEXPORT)


def _string(value: object) -> str:
    """The text that a field should hold; something that no grammar accepts when it holds anything else."""
    return value if isinstance(value, str) else "" if value is None else "\0"


def _listed(value: object) -> list[object]:
    """The items of a field that should be a list; something that no grammar accepts when it is not."""
    return value if isinstance(value, list) else [] if value is None else ["\0"]


def _mapping(value: object, place: str, gate: Gate) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise corrupt(f"{gate.where} ({text_safe(place)})", "a table is missing")
    return value
