"""Run this bundle's TensorRT engine: `python run.py inputs.npz outputs.npz`, or `load(folder)` from Python.

Needs numpy, a GPU with its driver, and the runtime that the engine is for: `tensorrt` (a plan built on this device by
`sh build.sh` or `python run.py --build`), or `tensorrt_rtx` (the engine that came with the bundle).
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


class CudaError(RuntimeError):
    """The driver is missing or refused a call."""


class Cuda:
    """The few calls of CUDA's driver that a run takes; the driver's library is there wherever a GPU works."""

    def __init__(self) -> None:
        for name in ("libcuda.so.1", "libcuda.so", "nvcuda.dll"):
            try:
                self.library = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise CudaError("no CUDA driver (libcuda.so.1) on this machine: the engine needs an NVIDIA GPU")
        self.call("cuInit", ctypes.c_uint(0))
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self.device = device.value
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.context = context
        self.use()
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(1))
        self.stream = stream

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            raise CudaError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")

    def use(self) -> None:
        """Make the context current: a run may come from another thread."""
        self.call("cuCtxSetCurrent", self.context)

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return int(pointer.value)

    def upload(self, pointer: int, array: np.ndarray[Any, Any]) -> None:
        address = array.ctypes.data_as(ctypes.c_void_p)
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(pointer), address, ctypes.c_size_t(array.nbytes))

    def download(self, array: np.ndarray[Any, Any], pointer: int) -> None:
        address = array.ctypes.data_as(ctypes.c_void_p)
        self.call("cuMemcpyDtoH_v2", address, ctypes.c_uint64(pointer), ctypes.c_size_t(array.nbytes))

    def wait(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def capability(self) -> int:
        """87 on an Orin, 80 on an A100."""
        parts = []
        for attribute in (75, 76):  # the major and the minor number of the compute capability
            value = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_int(self.device))
            parts.append(value.value)
        return parts[0] * 10 + parts[1]


def runtime(settings: dict[str, Any]) -> Any:
    """The module that reads this bundle's engine."""
    name = "tensorrt_rtx" if settings["kind"] == "tensorrt-rtx" else "tensorrt"
    try:
        return __import__(name)
    except ImportError:
        how = (
            "pip install tensorrt-rtx" if name == "tensorrt_rtx" else "on JetPack: sudo apt install python3-libnvinfer"
        )
        raise SystemExit(f"run.py: the Python module {name} is not installed: {how}") from None


class Engine:
    """An engine with its buffers; callable with a dict of arrays by input name."""

    def __init__(self, where: str) -> None:
        folder = Path(where)
        self.settings = json.loads((folder / "tensorrt.json").read_text(encoding="utf-8"))
        path = folder / self.settings["engine"]
        if not path.is_file():
            raise SystemExit(f"run.py: {path.name} is not built yet: run `sh build.sh` on the device first")
        trt = runtime(self.settings)
        self.cuda = Cuda()
        self.logger = trt.Logger(trt.Logger.ERROR)
        self.runtime = trt.Runtime(self.logger)
        if self.settings.get("dla") is not None:
            self.runtime.DLA_core = self.settings["dla"]
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            have = f"{trt.__name__} {trt.__version__}, SM{self.cuda.capability()}"
            raise SystemExit(f"run.py: {path.name} does not load here ({have})")
        self.execution = self.engine.create_execution_context()
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.pointers: dict[str, int] = {}
        self.inputs: list[str] = []
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            shape = tuple(self.engine.get_tensor_shape(name))
            self.arrays[name] = np.zeros(shape, trt.nptype(self.engine.get_tensor_dtype(name)))
            self.pointers[name] = self.cuda.allocate(self.arrays[name].nbytes)
            self.execution.set_tensor_address(name, self.pointers[name])
            if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self.inputs.append(name)

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.cuda.use()
        for name in self.inputs:
            if name not in inputs:
                raise SystemExit(f"run.py: input {name!r} is missing; the engine takes {', '.join(self.inputs)}")
            wanted = self.arrays[name]
            given = np.ascontiguousarray(inputs[name], dtype=wanted.dtype)
            if given.shape != wanted.shape:
                raise SystemExit(f"run.py: input {name!r} has shape {given.shape}, the engine takes {wanted.shape}")
            self.cuda.upload(self.pointers[name], given)
        self.again()
        results = {}
        for name, array in self.arrays.items():
            if name not in self.inputs:
                results[name] = np.empty_like(array)
                self.cuda.download(results[name], self.pointers[name])
        return results

    def again(self) -> None:
        """Run on what lies in the buffers already: what a latency is measured of."""
        if not self.execution.execute_async_v3(self.cuda.stream.value):
            raise SystemExit("run.py: the engine did not run")
        self.cuda.wait()


def load(folder: str, threads: int = 1) -> Engine:
    """A callable from a dict of numpy arrays by input name to a dict of arrays by output name."""
    return Engine(folder)


def build(folder: Path) -> None:
    """Build the plan with TensorRT's Python API; `build.sh` does the same with trtexec and times it too."""
    settings = json.loads((folder / "tensorrt.json").read_text(encoding="utf-8"))
    if settings["kind"] == "tensorrt-rtx":
        raise SystemExit("run.py: this bundle brings its engine; sh build.sh makes a TensorRT plan of the same model")
    if settings.get("dla") is not None:
        raise SystemExit("run.py: a plan for the DLA is built by sh build.sh")
    trt = runtime(settings)
    if int(trt.__version__.split(".")[0]) < 10:
        raise SystemExit(f"run.py: TensorRT {trt.__version__} has no strongly typed networks: use sh build.sh")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(folder / "model.onnx")):
        raise SystemExit(f"run.py: TensorRT {trt.__version__}: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if settings.get("sparse"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    stored = folder / "timing.cache"
    timing = config.create_timing_cache(stored.read_bytes() if stored.is_file() else b"")
    config.set_timing_cache(timing, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit(f"run.py: TensorRT {trt.__version__} built no plan; sh build.sh keeps the whole log")
    (folder / "model.plan.part").write_bytes(bytes(plan))
    (folder / "model.plan.part").replace(folder / "model.plan")
    stored.write_bytes(bytes(config.get_timing_cache().serialize()))


def main(arguments: list[str]) -> None:
    here = Path(__file__).resolve().parent
    if arguments == ["--build"]:
        build(here)
    elif len(arguments) == 2:
        with np.load(arguments[0]) as stored:
            given = {n[len("input:") :]: stored[n] for n in stored.files if n.startswith("input:")}
            inputs = given or {n: stored[n] for n in stored.files}
        np.savez(arguments[1], **load(str(here))(inputs))
    else:
        raise SystemExit("usage: python run.py inputs.npz outputs.npz    or    python run.py --build")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CudaError as error:
        raise SystemExit(f"run.py: {error}") from None
