"""CPUs as TVM's code generator must know them: LLVM's name of the CPU, its vectors, and the target of a build."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecompile.targets._tvm_elements import Simd

_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "fma"})
_AVX2 = frozenset({"avx2", "fma"})


@dataclass(frozen=True)
class Machine:
    """What code is generated for: triple, CPU (or features), vectors."""

    triple: str
    cpu: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    vnni: bool = False

    @property
    def simd(self) -> Simd:
        """Lanes and registers of vectors, and the dot product of integers that comes with them."""
        if "+dotprod" in self.features:
            return Simd(self.lanes, self.registers, "sdot")
        return Simd(self.lanes, self.registers, "vnni" if self.vnni else "pairs" if self.lanes > 4 else "")

    def target(self) -> Any:
        """TVM's target. Sums may be contracted and reassociated; NaN and infinity keep their meaning."""
        import tvm

        given: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "num-cores": 1}
        given |= {f"fast-math-{flag}": True for flag in ("contract", "reassoc", "nsz", "arcp")}
        if self.cpu:
            given["mcpu"] = self.cpu
        if self.features:
            given["mattr"] = list(self.features)
        return tvm.target.Target(given)

    def facts(self) -> dict[str, object]:
        """For a manifest."""
        return asdict(self)


def flags() -> frozenset[str]:
    """All flags of this CPU, as Linux lists them; none elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def host(flags: Iterable[str]) -> Machine:
    """This CPU, by its flags: the generic name with the same vectors, which every CPU that has them can run."""
    have = frozenset(flags)
    if have >= _AVX512:
        vnni = "avx512_vnni" in have
        return Machine(
            "x86_64-linux-gnu", "cascadelake" if vnni else "skylake-avx512", ("-prefer-256-bit",), 16, 32, vnni
        )
    if have >= _AVX2:
        return Machine("x86_64-linux-gnu", "haswell", (), 8, 16)
    return Machine("x86_64-linux-gnu", "x86-64-v2", (), 4, 16)


AARCH64 = Machine("aarch64-linux-gnu", "", ("+neon", "+dotprod"), 4, 32)
ANDROID = Machine("aarch64-linux-android24", "", ("+neon", "+dotprod"), 4, 32)


def named(arch: str, vectors: str) -> Machine:
    """The machine that a target's options mean."""
    if arch in ("sm_80", "sm_90"):  # the CPU beside the GPU
        return host(_AVX2)
    if arch != "host":
        return {"aarch64": AARCH64, "android": ANDROID, "sm_87": AARCH64}[arch]
    found = flags()
    return host(f for f in found if vectors == "auto" or not f.startswith("avx512"))


def runs_here(facts: object) -> bool:
    """Whether this CPU has what a library was compiled for."""
    if not isinstance(facts, dict) or not str(facts.get("triple", "")).startswith(platform.machine()):
        return False
    return int(facts["lanes"]) <= host(flags()).lanes
