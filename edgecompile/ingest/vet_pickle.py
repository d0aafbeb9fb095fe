"""Scan a pickle instruction by instruction, without running it, against what a dict of tensors needs.

`torch.load(weights_only=True)` has such a list of its own, and has failed twice (CVE-2025-32434,
CVE-2026-24747), while `torch.export.load` falls back to an unrestricted load when the first fails. So the
names and the instructions are checked here first, and both lists are shorter than torch's.
"""

from __future__ import annotations

import pickletools

from edgecompile.ingest.limits import Gate
from edgecompile.ingest.rules import corrupt, text_safe

_DTYPES = """
    float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex32
    complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu
"""
_STORAGES = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexDouble ComplexFloat"
ALLOWED = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        # tensors with attributes, as export leaves them on example inputs; the attributes are plain data
        "torch._utils._rebuild_parameter_with_state",
        "torch._tensor._rebuild_from_type_v2",
        "torch.Tensor",
        "torch.storage.UntypedStorage",
        *(f"torch.{name}" for name in _DTYPES.split()),
        *(f"torch.{name}Storage" for name in _STORAGES.split()),
    }
)
"""All names that a pickle of weights may hold."""

_WORDS = """
    PROTO GLOBAL BINPUT LONG_BINPUT BINGET LONG_BINGET MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET TUPLE
    TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    SHORT_BINSTRING BINPERSID REDUCE BUILD NEWOBJ APPEND APPENDS SETITEM SETITEMS STOP
"""
_INSTRUCTIONS = frozenset(_WORDS.split())

RESAVE_WEIGHTS = (
    "save weights only: torch.save(model.state_dict(), 'weights.pt') with torch 2.x, or safetensors.torch.save_file"
)
RESAVE_MODULE = (
    "save model.state_dict() and pass the class as path/file.py:function with --weights, or export a .pt2 file"
)


def scan(data: bytes, place: str, gate: Gate, how_to_allow: str = RESAVE_WEIGHTS) -> None:
    """Refuse a pickle that names anything outside `ALLOWED` or uses other instructions than weights need."""
    found: dict[str, None] = {}
    odd: dict[str, None] = {}
    count = end = 0
    try:
        for instruction, argument, position in pickletools.genops(data):
            count, end = count + 1, position or 0
            if count > gate.limits.pickle_instructions:
                gate.at_most("EC-IN-041", "instructions of pickle", "pickle_instructions", count, place)
            if instruction.name == "GLOBAL":
                name = str(argument).replace(" ", ".", 1)
                if name not in ALLOWED:
                    found[name] = None
            elif instruction.name not in _INSTRUCTIONS:
                odd[instruction.name] = None
            # Names put together on the stack (protocol 4) need not be followed: that instruction is refused.
    except (ValueError, UnicodeDecodeError, OverflowError, IndexError) as error:
        if not found and not odd:
            raise corrupt(f"{gate.where} ({text_safe(place)})", "damaged pickle") from error
    else:
        if end + 1 != len(data):
            raise corrupt(f"{gate.where} ({text_safe(place)})", "bytes after the end of the pickle")
    if found:
        _refuse_names(list(found), place, gate, how_to_allow)
    if odd:
        value = f"pickle with {', '.join(list(odd)[:3])}"
        gate.refuse("EC-IN-021", place, "the instructions of torch.save", value, how_to_allow)


def _refuse_names(found: list[str], place: str, gate: Gate, how_to_allow: str) -> None:
    shown = ", ".join(text_safe(name) for name in found[:3])
    shown += f", {len(found) - 3} more" if len(found) > 3 else ""
    if any(name.startswith("torch.nn.modules.") for name in found):
        gate.refuse("EC-IN-023", place, "state dicts only", f"a pickled module ({shown})", RESAVE_MODULE)
        return
    gate.refuse("EC-IN-020", place, "tensors, dtypes and OrderedDict only", f"pickle that calls {shown}", how_to_allow)
