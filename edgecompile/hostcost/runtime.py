"""ONNX Runtime's CPU provider as a stop-watch: sessions, made-up values, bound calls, times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgecompile.errors import InputError

Array = np.ndarray[Any, Any]
Call = Callable[[], object]

ELEMENTS: dict[str, tuple[int, str]] = {
    "float": (1, "float32"),
    "uint8": (2, "uint8"),
    "int8": (3, "int8"),
    "uint16": (4, "uint16"),
    "int16": (5, "int16"),
    "int32": (6, "int32"),
    "int64": (7, "int64"),
    "bool": (9, "bool"),
    "float16": (10, "float16"),
    "double": (11, "float64"),
    "uint32": (12, "uint32"),
    "uint64": (13, "uint64"),
}
"""ONNX Runtime's name of an element type -> its number in ONNX and its name in numpy."""
DTYPES = {number: np.dtype(name) for number, name in ELEMENTS.values()}

_SAMPLE_S = 100e-6
_BLOCK = 1 << 18
_EXTERNAL_BYTES = 1 << 16  # scales and zero points stay in the file: what they are decides which kernel runs


def session(
    model: Path | bytes, threads: int = 1, *, optimise: bool = False, settings: Mapping[str, str] | None = None
) -> Any:
    """A session on the CPU provider; `optimise=False` runs the graph exactly as it is written."""
    return _session(model, threads, optimise, settings or {}, None)


def save_optimised(model: Path, out: Path, threads: int = 1) -> None:
    """Write the graph that ONNX Runtime makes of `model`; its weights go to a file beside `out`."""
    settings = {
        "session.disable_prepacking": "1",
        "session.optimized_model_external_initializers_file_name": f"{out.name}.weights",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_EXTERNAL_BYTES),
    }
    _session(model, threads, True, settings, out)


def _session(model: Path | bytes, threads: int, optimise: bool, settings: Mapping[str, str], save: Path | None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    for name, value in settings.items():
        options.add_session_config_entry(name, value)
    if save is not None:
        options.optimized_model_filepath = str(save)
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the runtime's exceptions share no base class of its own
        name = "a cut node" if isinstance(model, bytes) else model.name
        text = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise InputError(
            f"{name}: ONNX Runtime {ort.__version__} does not load it: {text}; price a model that it runs"
        ) from None


def bound(live: Any, feed: Mapping[str, Array]) -> Call:
    """A call without arguments whose inputs and outputs stay where they are: nothing is copied or allocated."""
    import onnxruntime as ort

    inputs = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for name, value in feed.items()}
    values = live.run(None, dict(feed))
    outputs = {
        output.name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
        for output, value in zip(live.get_outputs(), values, strict=True)
    }
    return attach(live, inputs, outputs)


def attach(live: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Call:
    """The call of a session on buffers that exist already."""
    binding = live.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    kept = (inputs, outputs)

    def call(_kept: object = kept) -> None:
        live.run_with_iobinding(binding)

    return call


def clock(threads: int) -> Callable[[], int]:
    """Nanoseconds: of this thread alone for one thread, so that being preempted by others costs nothing."""
    return time.thread_time_ns if threads == 1 else time.perf_counter_ns


def typical_us(call: Call, threads: int = 1, budget_s: float = 0.006, least: int = 5) -> float:
    """Microseconds of a warm call, from samples of at least 100 us for about `budget_s`: the median for one thread.

    For more threads it is the quickest tenth: the wall clock also counts what other processes did on one of the cores
    while the rest waited for it.
    """
    now = clock(threads)
    call()
    call()
    estimate_s = min(_once(call, 1, now) for _ in range(2))
    inner = max(1, math.ceil(_SAMPLE_S / estimate_s))
    count = max(least, min(100, int(budget_s / (inner * estimate_s))))
    samples = [_once(call, inner, now) for _ in range(count)]
    return 1e6 * float(np.quantile(samples, 0.5 if threads == 1 else 0.1))


def _once(call: Call, inner: int, now: Callable[[], int]) -> float:
    start = now()
    for _ in range(inner):
        call()
    return max(now() - start, 1) / inner * 1e-9


def made_up(shape: tuple[int, ...], number: int, largest: int | None = None, positive: bool = False) -> Array:
    """Values of a shape and ONNX element type that no kernel finds special; whole numbers stay under `largest`.

    A block of values is repeated: drawing a hundred million numbers would take longer than what is to be timed.
    """
    dtype, count = DTYPES[number], math.prod(shape)
    rng = np.random.default_rng(count % 1009)
    drawn = min(max(count, 1), _BLOCK)
    if dtype.kind == "f":
        block = rng.standard_normal(drawn, dtype=np.float32)
        block = (np.abs(block) + np.float32(0.1) if positive else block).astype(dtype)
    elif dtype.kind == "b":
        block = rng.integers(0, 2, drawn).astype(dtype)
    elif dtype.itemsize == 1:
        block = rng.integers(0 if dtype.kind == "u" else -127, 128, drawn).astype(dtype)
    else:
        block = rng.integers(0, max(largest or 1, 1), drawn).astype(dtype)
    return np.resize(block, shape) if count else np.zeros(shape, dtype)
