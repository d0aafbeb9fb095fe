"""Kernels for NVIDIA GPUs: the same Relax program, scheduled by dlight's rules, as CUDA source and then a fatbin."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from edgecompile.errors import TargetError
from edgecompile.targets import _tvm_graph
from edgecompile.targets import _tvm_tir as tir
from edgecompile.targets._tvm_cuda_sums import without_single

if TYPE_CHECKING:
    from torch.export import ExportedProgram

THREADS = 1024
"""Threads of a block at most, on every GPU here."""
SHARED = 48 * 1024
"""Bytes of shared memory that a block may have without asking the driver for more; TVM's static buffers count here."""
SHARED_MOST = {"sm_80": 163 * 1024, "sm_87": 163 * 1024, "sm_90": 227 * 1024}
"""Bytes of shared memory of a block at most, by architecture: TVM's runtime asks for them where they are dynamic."""
HOSTS = {"sm_80": "x86_64-linux-gnu", "sm_87": "aarch64-linux-gnu", "sm_90": "x86_64-linux-gnu"}
"""The CPU beside the GPU, as LLVM's triple, by architecture."""
ONE_THREAD = 64
"""Terms up to which a sum is one thread's."""
_KERNEL = r'extern "C" __global__ void (?:__launch_bounds__\((\d+)[^)]*\) )?(\w+)\([^)]*\) \{'
_SHARED = r"^ *__shared__ (?:alignas\(\d+\) )?([\w ]+?) \w+\[(\d+)\];"
_BYTES = {"float": 4, "half": 2, "int": 4, "uint": 4, "unsigned int": 4, "int64_t": 8, "signed char": 1, "uchar": 1}


@dataclass(frozen=True)
class Kernels:
    """One function of the library: the rule that scheduled it, and the most that one of its kernels takes."""

    name: str
    rule: str
    operations: int
    calls: int
    threads: int
    shared_bytes: int


def target(arch: str) -> Any:
    """TVM's target for a GPU and the CPU beside it."""
    import tvm

    given = {"kind": "cuda", "arch": arch, "max_threads_per_block": THREADS, "thread_warp_size": 32}
    given["max_shared_memory_per_block"] = SHARED
    return tvm.target.Target(given, host={"kind": "llvm", "mtriple": HOSTS[arch]})


def imported(exported: ExportedProgram, dtype: str) -> Any:
    """The program in Relax with its results in float32; products in half precision and sums in single for float16."""
    import tvm
    from tvm import relax

    module = _tvm_graph.imported(exported)
    if dtype == "float32":
        return module
    p = relax.transform
    passes = [p.ToMixedPrecision(out_dtype="float32"), p.FoldConstant(), p.DeadCodeElimination(["main"])]
    return tvm.transform.Sequential(passes)(module)


def fused(module: Any, where: Any) -> Any:
    """The program as fused functions without schedules."""
    from tvm import relax

    return _tvm_graph.fused(module, where, relax.transform.LegalizeOps(), _borders_alone())


def _borders_alone() -> Any:
    """A pass that keeps borders out of the convolution before them: dlight cannot tile a result of another size."""
    import tvm
    from tvm import tirx

    opaque = 8  # TVM's number for what fuses with nothing

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator,unused-ignore]
    def run(module: Any, _context: Any) -> Any:
        for name, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and name.name_hint.rstrip("0123456789") == "pad":
                module[name] = function.with_attr("op_pattern", opaque)
        return module

    return run


def _intrinsics() -> None:
    """Import TVM's tensor instructions, which takes minutes where TVM reads the source around every caller for each."""
    import inspect
    from importlib import import_module

    stack = inspect.stack
    inspect.stack = lambda context=1: stack(0)
    try:
        import_module("tvm.s_tir.tensor_intrin")
    finally:
        inspect.stack = stack


def scheduled(module: Any, where: Any) -> tuple[Any, dict[str, tuple[str, int]]]:
    """Every function on blocks and threads; the name of the rule that took it, and its operations before."""
    from tvm import tirx

    if "float16" in str(module):
        _intrinsics()
    found: dict[str, tuple[str, int]] = {}
    with where:
        for name, function in module.functions_items():
            if not isinstance(function, tirx.PrimFunc):
                continue
            rule, made = _by_rule(name.name_hint, without_single(function), where)
            module[name] = made.with_attr("tirx.is_scheduled", True)
            found[name.name_hint] = rule, _tvm_graph.operations(function)
    return module, found


def _by_rule(name: str, function: Any, where: Any) -> tuple[str, Any]:
    from tvm.s_tir import dlight

    if function.attrs and function.attrs.get("tirx.is_scheduled"):
        return "TVM", function
    gpu = dlight.gpu
    # those rules give a sum to a whole block of threads: for the few terms of a depthwise convolution one is enough
    wide = () if 1 < _terms(function) <= ONE_THREAD else (gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction())
    for rule in (gpu.Matmul(), *wide, gpu.Fallback()):
        try:
            made = rule.apply(function, where, False)
        except Exception:  # a rule that stumbles is one that does not fit; the last one says what is left of it
            continue
        if made is not None:
            schedule = made[0] if isinstance(made, list) else made
            return type(rule).__name__, schedule.mod["main"]
    return "threads", _spread(name, function)


def _spread(name: str, function: Any) -> Any:
    """A thread for every result, for what dlight cannot read: windows whose size differs from place to place."""
    from tvm import s_tir

    schedule = s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops, axes = schedule.get_loops(block), schedule.get(block).iter_vars
        outer = list(takewhile(lambda pair: int(pair[1].iter_type) == 0, zip(loops, axes, strict=False)))
        if not outer:
            raise TargetError(
                f"tvm: {name}: no rule spreads it over a GPU's threads; a CPU's library (arch=aarch64) has it"
            )
        blocks, threads = schedule.split(schedule.fuse(*(loop for loop, _ in outer)), [None, THREADS])
        schedule.bind(blocks, "blockIdx.x")
        schedule.bind(threads, "threadIdx.x")
    return schedule.mod["main"]


def _terms(function: Any) -> int:
    """Terms of the longest sum (or maximum) in a function; 1 where there is none, 0 where its form is unknown."""
    blocks = tir.blocks_of(function)
    if blocks is None:
        return 0
    return max((math.prod(b.sizes[i] for i in b.reduced) for b in blocks), default=1)


def functions(module: Any, rules: Mapping[str, tuple[str, int]], source: str, arch: str) -> list[Kernels]:
    """All functions with what their kernels take; `TargetError` where a block would be too large for the GPU."""
    from tvm import tirx

    calls, blocks = _tvm_graph._calls(module), kernels(source)
    found = []
    for name, function in module.functions_items():
        if not isinstance(function, tirx.PrimFunc):
            continue
        own = [row for kernel, row in blocks.items() if re.sub(r"_kernel(_\d+)?$", "", kernel) == name.name_hint]
        threads = max((t for t, _ in own), default=1)
        static = max((s for _, s in own), default=0)
        shared = static + dynamic(function)
        if not own or threads > THREADS or static > SHARED or shared > SHARED_MOST[arch]:
            raise TargetError(
                f"tvm: {name.name_hint}: {len(own)} kernels, {threads} threads and {shared} bytes of shared memory "
                f"a block: {arch} takes {THREADS} and {SHARED_MOST[arch]} ({SHARED} of them static)"
            )
        found.append(
            Kernels(
                name.name_hint, *rules[name.name_hint], calls.get(name.name_hint, 1), threads, shared,
            )
        )  # fmt: skip
    return sorted(found, key=lambda f: f.name)


def kernels(source: str) -> dict[str, tuple[int, int]]:
    """Threads of a block and static shared bytes of every kernel in CUDA source that TVM wrote."""
    heads = list(re.finditer(_KERNEL, source))
    found = {}
    for head, after in zip(heads, [*heads[1:], None], strict=True):
        body = source[head.end() : after.start() if after else len(source)]
        shared = sum(_BYTES[kind] * int(count) for kind, count in re.findall(_SHARED, body, re.MULTILINE))
        found[head[2]] = int(head[1] or 1), shared
    return found


def dynamic(function: Any) -> int:
    """Bytes of dynamic shared memory that a scheduled function's buffers take at most."""
    if "shared.dyn" not in str(function):
        return 0
    import tvm
    import tvm_ffi
    from tvm import s_tir, tirx
    from tvm.s_tir.stmt import SBlock

    total = 0

    def visit(block: Any) -> None:
        nonlocal total
        for buffer in block.alloc_buffers:
            if str(buffer.scope()) == "shared.dyn":
                elements = 1
                for size in buffer.shape:
                    elements *= int(size) if isinstance(size, tirx.IntImm) else 1
                total += elements * int(buffer.dtype.bits) // 8

    t = s_tir.transform
    passes = [t.LowerInitBlock(), t.PlanAndUpdateBufferAllocationLocation(), t.ConvertBlocksToOpaque()]
    passes.append(t.CompactBufferAllocation())
    module = tvm.transform.Sequential(passes)(tvm.IRModule({"main": function}))
    tvm_ffi.structural_walk(module["main"].body, [(SBlock, visit)], order="post")
    return total


def source_of(executable: Any) -> str:
    """The CUDA source of a compiled program."""

    def walk(module: Any) -> list[str]:
        own = [module.inspect_source()] if module.kind == "cuda" else []
        return own + [text for inner in module.imports for text in walk(inner)]

    return "\n".join(walk(executable.mod))
