"""ExportedProgram to Relax with channels last, to scheduled functions, to an executable; and which rule took what."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgecompile.targets import _tvm_int8, _tvm_int8_import
from edgecompile.targets import _tvm_tir as tir
from edgecompile.targets._tvm_elements import Simd
from edgecompile.targets._tvm_fold import bordered, folded
from edgecompile.targets._tvm_import import converters, prepared
from edgecompile.targets._tvm_layers import Weights
from edgecompile.targets._tvm_legalize import legalizers
from edgecompile.targets._tvm_rules import scheduled

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Function:
    """One function of the library: the rule that made its code, None for TVM's plain loops, and its operations."""

    name: str
    rule: str | None
    operations: int
    calls: int = 1

    def row(self) -> dict[str, object]:
        """For a manifest."""
        return asdict(self)


def imported(exported: ExportedProgram, simd: Simd | None = None) -> Any:
    """The program in Relax: batch norms folded, convolutions in NHWC, constants computed.

    With the vectors of a CPU, what is quantized runs in integers.
    """
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    p = relax.transform
    exported = prepared(exported)
    table = dict(converters(Weights.of(exported)))
    if simd is not None and any("quantize" in str(n.target) for n in exported.graph.nodes):
        table = table | _tvm_int8_import.converters(_tvm_int8.planned(exported, simd.signed), table, simd)
    module = from_exported_program(exported, custom_convert_map=table, run_ep_decomposition=False)
    passes = [
        p.DecomposeOpsForInference(),
        p.CanonicalizeBindings(),
        p.DeadCodeElimination(["main"]),
        p.ConvertLayout({"relax.nn.conv2d": ["NHWC", "HWIO"]}),
        p.Normalize(),
        folded(),
        bordered(),
        p.FoldConstant(),
        p.EliminateCommonSubexpr(),
        p.RemoveRedundantReshape(),
        p.DeadCodeElimination(["main"]),
    ]
    return tvm.transform.Sequential(passes)(module)


def fused(module: Any, target: Any, *legalize: Any) -> Any:
    """The program as fused functions without schedules, operators made tensor expressions by `legalize`."""
    import tvm
    from tvm import relax

    p = relax.transform
    passes = [
        relax.backend.DispatchSortScan(),
        *legalize,
        p.AnnotateTIROpPattern(),
        p.FoldConstant(),
        p.FuseOps(),
        p.FuseTIR(),
        p.DeadCodeElimination(["main"]),
        p.RewriteDataflowReshape(),
        p.DeadCodeElimination(["main"]),
    ]
    with target:
        return tvm.transform.Sequential(passes)(module)


def lowered(module: Any, target: Any, simd: Simd) -> tuple[Any, list[Function]]:
    """Functions fused and scheduled by our rules, with the list of all functions."""
    return with_code(summed(module, target, simd), simd)


def summed(module: Any, target: Any, simd: Simd) -> Any:
    """The program as fused functions of our own tensor expressions, without code."""
    from tvm import relax

    return fused(module, target, relax.transform.LegalizeOps(legalizers(simd)))


def with_code(module: Any, simd: Simd) -> tuple[Any, list[Function]]:
    """The functions as our rules schedule them, with the list of all functions."""
    from tvm import tirx

    calls = _calls(module)
    found = []
    for name, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc):
            continue
        made = scheduled(function, simd)
        if made is not None:
            module[name] = made[1]
        rule = None if made is None else made[0]
        found.append(Function(name.name_hint, rule, operations(function), calls.get(name.name_hint, 1)))
    return module, sorted(found, key=lambda f: f.name)


def operations(function: Any) -> int:
    """Arithmetic operations of a function, from the sizes of its blocks; 0 where they are not static."""
    return tir.counted(function.body)


def _calls(module: Any) -> dict[str, int]:
    from collections import Counter

    from tvm import relax

    found: Counter[str] = Counter()

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == "relax.call_tir":
            found[expr.args[0].name_hint] += 1

    relax.analysis.post_order_visit(module["main"], visit)
    return dict(found)


def executable(module: Any, target: Any) -> Any:
    """Machine code for scheduled functions and the bytecode that calls them."""
    import tvm
    from tvm import relax

    p = relax.transform
    passes = [
        p.ToNonDataflow(),
        p.RemovePurityChecking(),
        p.CallTIRRewrite(),
        p.StaticPlanBlockMemory(),
        p.LowerAllocTensor(),
        p.KillAfterLastUse(),
        p.LowerRuntimeBuiltin(),
        p.ComputePrimValue(),
        p.VMShapeLower(),
        p.AttachGlobalSymbol(),
    ]
    return tvm.compile(module, target=target, relax_pipeline=tvm.transform.Sequential(passes))
