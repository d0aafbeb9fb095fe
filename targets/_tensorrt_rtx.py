"""TensorRT-RTX without a GPU: its parser as the judge of a model, its builder for engines; in a child process."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompile.errors import TargetError

SMS = (75, 80, 86, 89, 120)
"""Compute capabilities that TensorRT-RTX 1.7 builds for without a GPU."""
INSTALL = "TensorRT-RTX is not installed: pip install 'edgecompile[tensorrt]'"
_ROUNDS = 100
_ENDED = "RESULT "
_CHATTER = ("CUDA driver version is insufficient", "has Int64 binding")
"""What is said of every machine without a GPU, and of every integer input."""


@dataclass(frozen=True)
class Fault:
    """One node that the parser does not take."""

    node: str
    operator: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """What the parser, or the builder, said of a model."""

    version: str
    faults: tuple[Fault, ...] = ()
    layers: tuple[dict[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def available() -> bool:
    """Whether TensorRT-RTX can be imported."""
    return importlib.util.find_spec("tensorrt_rtx") is not None


def check(model: Path, limit_s: float) -> Verdict:
    """Every node of a model that the parser refuses; none means that it parses as a strongly typed network."""
    return _child(["check", str(model)], limit_s)


def build(model: Path, sm: int, engine: Path, sparse: bool, limit_s: float) -> Verdict:
    """Write the engine for one compute capability; `TargetError` with the builder's reason when it fails.

    `sparse` lets the builder look for 2:4 weights.
    """
    return _child(["build", str(model), str(sm), str(engine), *(["sparse"] if sparse else [])], limit_s)


def _child(arguments: list[str], limit_s: float) -> Verdict:
    if not available():
        raise TargetError(f"tensorrt: {INSTALL}", rule="toolchain")
    command = [sys.executable, "-m", __name__, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise TargetError(
            f"tensorrt: TensorRT-RTX took over {limit_s:g} s to {arguments[0]} the model: raise limit_s"
        ) from None
    line = next((x for x in reversed(done.stdout.splitlines()) if x.startswith(_ENDED)), None)
    if line is None:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TargetError(f"tensorrt: TensorRT-RTX crashed ({how}) while it tried to {arguments[0]}: {last[:300]}")
    said = json.loads(line.removeprefix(_ENDED))
    if said.get("failed"):
        raise TargetError(f"tensorrt: TensorRT-RTX {said['version']} built no engine: {said['failed'][:300]}")
    faults = tuple(Fault(**fault) for fault in said["faults"])
    return Verdict(said["version"], faults, tuple(said["layers"]), tuple(said["warnings"]))


def main(arguments: list[str]) -> None:
    """The child: `check MODEL` or `build MODEL SM ENGINE [sparse]`, the verdict as the last line."""
    trt: Any = importlib.import_module("tensorrt_rtx")
    log = _log(trt)
    said: dict[str, Any] = {"version": trt.__version__, "faults": [], "layers": []}
    if arguments[0] == "check":
        said["faults"] = _faults(trt, log, Path(arguments[1]))
    else:
        _build(trt, log, Path(arguments[1]), int(arguments[2]), Path(arguments[3]), "sparse" in arguments[4:], said)
    said["warnings"] = sorted({_reason(text) for level, text in log.heard if level == "WARNING"} - {""})[:20]
    print(_ENDED + json.dumps(said), flush=True)


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.heard: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if not any(known in message for known in _CHATTER):
                self.heard.append((severity.name, message))

    return Log()


def _parse(trt: Any, log: Any, content: bytes) -> tuple[Any, Any, Any, bool]:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    return builder, network, parser, bool(parser.parse(content))


def _faults(trt: Any, log: Any, path: Path) -> list[dict[str, str]]:
    """Parse, cut the refused nodes out, parse again: the parser stops at the first node that fails an assertion."""
    import onnx

    content = path.read_bytes()
    if _parse(trt, log, content)[-1]:
        return []
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content))
    except Exception as error:
        return [{"node": "", "operator": "", "why": _reason(f"not an ONNX model: {error}")}]
    types = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    found: list[dict[str, str]] = []
    for _ in range(_ROUNDS):
        _, _, parser, parsed = _parse(trt, log, model.SerializeToString())
        if parsed:
            break
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        placed = {e.node(): e for e in errors if 0 <= e.node() < len(model.graph.node)}
        # what reads a refused node is refused too, until that is cut out
        refused = {at: e for at, e in placed.items() if "input was not registered" not in e.desc()} or placed
        if not refused:
            why = _reason(errors[0].desc()) if errors else "the parser gives no reason"
            found.append({"node": "", "operator": "", "why": why})
            break
        for index in sorted(refused, reverse=True):
            node = model.graph.node[index]
            found.append({"node": node.name, "operator": node.op_type, "why": _reason(refused[index].desc())})
            _cut(model.graph, node, types)
    return found


def _cut(graph: Any, node: Any, types: dict[str, Any]) -> None:
    """Make what a node computes an input of the graph instead."""
    results = list(node.output)
    graph.node.remove(node)
    for name in results:
        for output in [o for o in graph.output if o.name == name]:
            graph.output.remove(output)
        if name in types:
            graph.input.append(types[name])
    if not graph.output:
        graph.output.extend(types[o] for n in graph.node for o in n.output if o in types)


def _build(trt: Any, log: Any, path: Path, sm: int, engine: Path, sparse: bool, said: dict[str, Any]) -> None:
    builder, network, parser, parsed = _parse(trt, log, path.read_bytes())
    if not parsed:
        said["failed"] = _reason(parser.get_error(0).desc()) if parser.num_errors else "the model does not parse"
        return
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
    content = builder.build_serialized_network(network, config)
    if content is None:
        errors = [text for level, text in log.heard if level in ("ERROR", "INTERNAL_ERROR")]
        said["failed"] = _reason(errors[0]) if errors else "the builder gives no reason"
        return
    engine.write_bytes(bytes(content))
    said["layers"] = _layers("\n".join(text for level, text in log.heard if level == "VERBOSE"))


def _reason(text: str) -> str:
    """The parser's reason in one line, without its source position and condition."""
    line = " ".join(text.split())
    line = re.sub(r"\[checkMacros\.cpp.*$", "", line)
    line = re.sub(r"^.*?Assertion failed: [^:]*(?:::[^:]*)*: ", "", line)
    line = line.strip(" .")[:300]
    return "TensorRT's parser has no such operator" if line in ("", "false") else line


def _layers(text: str) -> list[dict[str, str]]:
    """Fused layers from the builder's log: name, kind, type of the result and the ONNX nodes in it."""
    found = []
    for line in text.splitlines():
        match = re.match(r"Name: ([^,]+), LayerType: (\w+), ", line)
        if match is None:
            continue
        output = re.search(r"Outputs: \[ \{.*?Datatype: (\w+)", line)
        nodes = re.findall(r"\[ONNX Layer: ([^\]\x1e\x1f]+)", line)
        fused = ", ".join(dict.fromkeys(nodes))
        found.append({"name": match[1], "kind": match[2], "writes": output[1] if output else "", "nodes": fused})
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
