"""The languages inside a .pt2 file that torch evaluates as Python, each read here as a small fixed grammar.

Symbolic sizes go through `sympy.sympify`, guards through `exec`, operator names through `getattr` from the
torch module, structures through `importlib`. Function names are those of `torch/_export/serde/serialize.py`
(`sympy_functions`) and `torch/utils/_sympy/functions.py`, and the sympy classes that `srepr` writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise

from edgecompile.ingest.limits import Limits


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTIONS = _words(
    """
    Integer Rational Symbol Float Add Mul Pow Max Min Mod Abs floor ceiling Equality Unequality Eq Ne
    GreaterThan LessThan StrictGreaterThan StrictLessThan Ge Le Gt Lt And Or Not Piecewise ExprCondPair ITE
    FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural
    FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt
    RoundDecimal ToFloat Identity OpaqueUnaryFn_sqrt OpaqueUnaryFn_exp OpaqueUnaryFn_log OpaqueUnaryFn_log2
    OpaqueUnaryFn_cos OpaqueUnaryFn_sin OpaqueUnaryFn_tanh BitwiseFn_bitwise_and BitwiseFn_bitwise_or
    """
)
_GUARD_FUNCTIONS = _words(
    """
    max min abs floor ceil int FloorDiv Mod PythonMod ModularIndexing Max Min CeilDiv PowByNatural IntTrueDiv
    FloatTrueDiv ToFloat TruncToInt Eq Ne And Or Not
    """
)
_CONSTANTS = frozenset({"true", "false", "True", "False", "oo", "int_oo"})
_ASSUMPTIONS = _words(
    "positive negative nonnegative nonpositive nonzero zero integer real finite even odd precision evaluate"
)
_SYMBOL = re.compile(r"(?:s|u|zf|zuf|ps)\d{1,6}")
_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    r"|'(?P<text>[^'\\\n\"]{0,200})'|(?P<mark>//|\*\*|==|!=|<=|>=|[-+*/%(),=<>\[\].]))"
)
_SIZE_OF = re.compile(
    r"L(?:\['[\w ./:-]{1,200}'\]|\[\d{1,6}\]|\.(?!size\(|stride\(|storage_offset\()[A-Za-z]\w{0,200})+"
    r"(?:\.(?:size|stride)\(\)\[\d{1,3}\]|\.storage_offset\(\)|)",
    re.ASCII,
)
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(_?[A-Za-z]\w*|__(?:and|or|xor|lshift|rshift)__)(\.[A-Za-z]\w*)?", re.ASCII)
_NAMESPACES = _words("aten prims quantized_decomposed torchao torchvision edgecompile")
_HIGHER_ORDER = _words("cond while_loop scan map_impl associative_scan wrap_with_set_grad_enabled wrap_with_autocast")
_FILE_OPERATORS = frozenset({"from_file"})
_ON_SIZES = _words("eq ne le ge lt gt neg pos mul add sub floordiv mod pow truediv and_ or_ lshift rshift getitem")
_SCALAR = frozenset(
    {f"_operator.{name}" for name in _ON_SIZES}
    | {f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt", "sum")}
    | {f"math.{name}" for name in ("trunc", "ceil", "floor", "sqrt")}
    | {"torch._sym_sqrt"}
)
_STRUCTURES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_KEY = re.compile(r"[\w ./:-]{1,200}", re.ASCII)


def symbolic_fault(text: str, limits: Limits) -> str | None:
    """Why `text` is not plain arithmetic on symbols; None when it is."""
    if too_big := _size_fault(text, limits):
        return too_big
    tokens = list(_tokens(text))
    if _calls_a_value(tokens):
        return "the call of a value"
    for index, (kind, value) in enumerate(tokens):
        follows = tokens[index + 1][1] if index + 1 < len(tokens) else ""
        before = [token for _, token in tokens[max(0, index - 2) : index]]
        match kind:
            case "name" if follows == "(" and value not in _FUNCTIONS:
                return f"the call of {value[:40]}"
            case "name" if follows == "=" and value not in _ASSUMPTIONS:
                return f"the argument {value[:40]}"
            case "name" if follows not in ("(", "=") and not (value in _CONSTANTS or _SYMBOL.fullmatch(value)):
                return f"the name {value[:40]}"
            case "number" if len(value) > 20:
                return "a very long number"
            case "text" if before == ["Symbol", "("] and _SYMBOL.fullmatch(value):
                pass
            case "text" if before == ["Float", "("] and re.fullmatch(r"-?[\d.]{1,40}(e[+-]?\d{1,3})?", value):
                pass
            case "text":
                return "a string"
            case "mark" if value in ("[", "]", ".", "%"):
                return f"'{value}'"
            case "junk":
                return f"'{value}'"
    return None


def guard_fault(text: str, limits: Limits) -> str | None:
    """Why `text` is not a plain comparison of sizes of inputs; None when it is."""
    if too_big := _size_fault(text, limits):
        return too_big
    plain = _SIZE_OF.sub(" 0 ", text)
    tokens = list(_tokens(plain))
    if _calls_a_value(tokens):
        return "the call of a value"
    for index, (kind, value) in enumerate(tokens):
        called = index + 1 < len(tokens) and tokens[index + 1][1] == "("
        match kind:
            case "name" if called and value not in _GUARD_FUNCTIONS | {"and", "or", "not"}:
                return f"the call of {value[:40]}"
            case "name" if not called and value not in ("and", "or", "not", "True", "False", "None", "is"):
                return f"the name {value[:40]}"
            case "number" if len(value) > 20:
                return "a very long number"
            case "mark" if value in ("[", "]", ".", "=", "**"):
                return f"'{value}'"
            case "text":
                return "a string"
            case "junk":
                return f"'{value}'"
    return None


def operator_fault(target: str) -> str | None:
    """Why `target` is no tensor operator or arithmetic on sizes; None when it is."""
    if target in _SCALAR:
        return None
    found = _OPERATOR.fullmatch(target)
    if found and found[1] == "higher_order" and found[2] in _HIGHER_ORDER:
        return None
    if found and found[1] in _NAMESPACES and found[3] and found[2] not in _FILE_OPERATORS:
        return None
    return "operator"


def structure_fault(text: str, limits: Limits) -> str | None:
    """Why a serialized pytree is more than tuples, lists and dicts with plain keys; None when it is not."""
    if len(text) > 64 * limits.expression_length:
        return f"more than {64 * limits.expression_length:,} characters"
    try:
        version, root = json.loads(text)
        stack = [root]
        while stack:
            node = stack.pop()
            kind, context, children = node["type"], node["context"], node["children_spec"]
            if kind is None and context is None and children == []:
                continue
            if kind not in _STRUCTURES:
                return f"type {str(kind)[:60]}"
            keys = json.loads(context)
            mapping = kind in ("builtins.dict", "collections.OrderedDict")
            if not (_plain_keys(keys) if mapping else keys is None):
                return f"context {context[:60]}"
            stack += children
    except (ValueError, TypeError, KeyError, RecursionError):
        return "unreadable JSON"
    return None if version == 1 else "an unknown version"


def _plain_keys(keys: object) -> bool:
    """Whether `keys` is a list of names and numbers that can stand in generated code."""
    return isinstance(keys, list) and all(
        type(key) is int or (isinstance(key, str) and _KEY.fullmatch(key) is not None) for key in keys
    )


def _size_fault(text: str, limits: Limits) -> str | None:
    if len(text) > limits.expression_length:
        return f"more than {limits.expression_length:,} characters"
    if not text.isascii():
        return "letters outside ASCII"
    depth = deepest = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        deepest = max(deepest, depth)
    if deepest > limits.expression_depth:
        return f"more than {limits.expression_depth} levels of nesting"
    return None


def _calls_a_value(tokens: list[tuple[str, str]]) -> bool:
    """Whether an opening bracket follows a number, a string or a closing bracket."""
    return any(
        after == ("mark", "(") and (kind in ("number", "text") or value == ")")
        for (kind, value), after in pairwise(tokens)
    )


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Tokens as (kind, text); whatever is none becomes one `junk` token, and ends the list."""
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            yield "junk", text[at : at + 20].strip()
            return
        yield found.lastgroup, found[found.lastgroup]
        at = found.end()
