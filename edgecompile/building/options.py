"""BuildOptions: everything a build can be told, once; each field is a flag, a keyword and a key of edgecompile.toml."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgecompile.errors import SpecError, near
from edgecompile.spec import Call, Latency, make, parse_calls, parse_drop, parse_duration, parse_latency, parse_size

_MAX_TOML_BYTES = 1_000_000
_MAX_THREADS = 1024
BESIDE: Mapping[str, type] = {"model": str, "dump": str, "verbose": bool, "json": bool}
"""What the `[build]` table of an edgecompile.toml may hold besides the fields of `BuildOptions`."""


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class BuildOptions:
    """What to build, for what, under which budgets, with which data."""

    target: str = _help("A deployment (host) or artifact@device (onnx@host).", "host")
    device: str | None = _help("A device profile by name or .toml file, instead of the target's own.")
    pipeline: str | None = _help(
        "Passes behind the exact ones, such as 'quantize(calibration=percentile)'; '' for none."
    )
    preset: Literal["fast", "balanced", "best"] | None = _help(
        "Fit the latency budget by cutting, then heal on --train data, then quantize; fast does not train."
    )
    max_latency: str | None = _help("Latency budget: 4ms, p99:4ms or 60% of the teacher; 50%,25% builds for each.")
    max_drop: str | None = _help("Accuracy budget in points of the score: 1pp or 0.5%.")
    max_size: str | None = _help("Size budget of the artifact: 4MB or 30% of the teacher.")
    calib: str | None = _help("Calibration data: .npz, .npy, a folder of images, a .txt or module:function.")
    eval: str | None = _help("Evaluation data, in the same forms; with labels where there are any.")
    train: str | None = _help("Training data, in the same forms.")
    train_budget: str | None = _help("How long training may take: 10m, 90s or 1h; made a number of steps once.")
    augment: str = _help("What is done to training pictures: flip,shift=4 or module:function.", "")
    labels: str | None = _help("Labels of the evaluation images: one 'file label' a line.")
    score: str | None = _help("The score: module:function of (outputs, targets) to a percentage.")
    weights: str | None = _help("Weights for a module:function model: .safetensors, or a state dict in .pt.")
    input: tuple[str, ...] = _help("An input's shape, NAME=1x3x224x224:float32; repeat for several.", ())
    fix: tuple[str, ...] = _help("Make an input of an ONNX file a constant, sr=16000; repeat for several.", ())
    image: str | None = _help("How images are prepared: size=224,crop=center,mean=..,std=..")
    batch: int = _help("The batch of the artifact.", 1)
    threads: int | None = _help("Threads that the artifact is run and measured with (default: the device's).")
    tune: str | None = _help("How long artifacts for this CPU may measure their kernels while they are built: 20m.")
    keep_float: tuple[str, ...] = _help("Layers that stay float, as a glob over their names; repeat for several.", ())
    out: str = _help("The output folder.", "out")
    seed: int = _help("Seed of everything random.", 0)
    decisions: str | None = _help("Replay the choices recorded in this report.json.")
    golden: Literal["data", "synthetic"] = _help(
        "Golden inputs: the first evaluation sample, or random numbers.", "data"
    )
    strict: bool = _help("The accuracy budget must be certified by the data, else exit 7.", False)
    trust_model: bool = _help("Let a model file run its own code. Written into the manifest.", False)
    dry_run: bool = _help("Say what would be done, build nothing.", False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise SpecError(f"--batch {self.batch}: must be 1 or more")
        if self.threads is not None and self.threads < 1:
            raise SpecError(f"--threads {self.threads}: must be 1 or more")
        if self.threads is not None and self.threads > _MAX_THREADS:
            raise SpecError(f"--threads {self.threads}: more than {_MAX_THREADS}")
        for given, flag in ((self.tune, "--tune"), (self.train_budget, "--train-budget")):
            if given is not None:
                parse_duration(given, flag)
        if not 0 <= self.seed < 2**63:
            raise SpecError(f"--seed {self.seed}: must lie between 0 and 2^63 - 1")
        for option in dataclasses.fields(self):
            if "\0" in str(getattr(self, option.name)):
                raise SpecError(f"--{option.name.replace('_', '-')}: holds a NUL character")

    def budgets(self) -> Budgets:
        """The three budgets read; raises `SpecError`."""
        size = parse_size(self.max_size) if self.max_size else (None, None)
        return Budgets(
            parse_latency(self.max_latency) if self.max_latency else None,
            parse_drop(self.max_drop) if self.max_drop else None,
            size[0],
            size[1],
        )


@dataclass(frozen=True)
class Budgets:
    """Latency, percent points of the score, and size in bytes or percent of the teacher's."""

    latency: Latency | None
    drop_pp: float | None
    size_bytes: int | None
    size_percent: float | None


def read_toml(path: Path) -> dict[str, Any]:
    """The checked `[build]` table of an `edgecompile.toml`; keys are MODEL and the flags, kebab-case or snake_case."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_TOML_BYTES:
        raise SpecError(f"{path}: {len(data)} bytes, more than {_MAX_TOML_BYTES}: not an edgecompile.toml")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(f"{path}: not TOML: {error}") from None
    unknown = [key for key in table if key != "build"]
    if unknown or not isinstance(table.get("build", {}), dict):
        wrong = unknown[0] if unknown else "build"
        line = _line_of(data.decode("utf-8"), f"[{wrong}", wrong)
        raise SpecError(f"{path}:{line}: unknown table {wrong!r}{near(wrong, ['build'])}")
    values = {key.replace("-", "_"): value for key, value in table.get("build", {}).items()}
    names = {f.name for f in dataclasses.fields(BuildOptions)}
    for key, value in values.items():
        where = f"{path}:{_line_of(data.decode('utf-8'), key, key.replace('_', '-'))}"
        if key in names:
            make(BuildOptions, {key: value}, f"{where}: build")
        elif key not in BESIDE:
            raise SpecError(f"{where}: unknown key {key!r}{near(key, names | set(BESIDE))}")
        elif not isinstance(value, BESIDE[key]):
            raise SpecError(f"{where}: build.{key}: expected {BESIDE[key].__name__}, got {value!r}")
    return values


def _line_of(text: str, *words: str) -> int:
    lines = (i for i, row in enumerate(text.splitlines(), 1) if row.strip().startswith(words))
    return next(lines, 1)


def options_from(values: Mapping[str, Any], where: str) -> BuildOptions:
    """Checked options from a table; raises `SpecError` that begins with `where`."""
    return make(BuildOptions, values, where)


def deployment(
    text: str, device: str | None, known: Mapping[str, tuple[str, ...]]
) -> list[tuple[tuple[Call, ...], str]]:
    """`host` or `onnx(opset=18)@host` as (target calls, device name) pairs; the first is primary.

    Targets joined by `|` are made of one program, and the fastest of them is the artifact.
    """
    entries = known.get(text)
    if entries is None and "@" not in text and "(" not in text:
        raise SpecError(
            f"--target: unknown deployment {text!r}{near(text, known)}; or write artifact@device, such as onnx@host"
        )
    found = []
    for entry in entries or (text,):
        joined, _, name = entry.rpartition("@") if "@" in entry else (entry, "", "host")
        calls = [parse_calls(one, "--target") for one in joined.split("|")]
        if any(len(c) != 1 for c in calls):
            raise SpecError(f"--target {text!r}: expected one artifact, such as onnx@host")
        found.append((tuple(c[0] for c in calls), device or name))
    return found
