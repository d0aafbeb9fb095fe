"""Seconds of a list of fused operators on a device, from its profile and the parameters that were fitted for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from edgecompile.cost.columns import COMPUTES_IN, columns
from edgecompile.cost.laws import LAWS, PARAMETERS, Seconds, Sheet
from edgecompile.cost.work import Work
from edgecompile.device import DeviceProfile, Figure
from edgecompile.errors import SpecError

Fitted = Mapping[str, Mapping[str, float]]
"""Dtype -> parameters; `all` where a law has the same in every dtype."""

SHARED = "all"


def sheet(profile: DeviceProfile, unit: str = "") -> Sheet:
    """The specification sheet of a unit, in the power mode in force: rates follow its cores and its clock."""
    one, mode = profile.units[unit or profile.unit], profile.modes.get(profile.mode)
    cores, bandwidth = one.cores, profile.bandwidth_gb_s
    scale = 1.0
    if mode and unit in ("", profile.unit):
        bandwidth = mode.bandwidth_gb_s or bandwidth
        for changed, full in ((mode.cores, one.cores), (mode.clock_mhz, one.clock_mhz)):
            if changed and full:
                scale *= changed.value / full.value
        cores = mode.cores or cores
    per_second = 0.5e12 * scale * one.count

    def rates(of: Mapping[str, Figure]) -> dict[str, float]:
        return {dtype: figure.value * per_second for dtype, figure in of.items()}

    dense = rates(one.rates)
    return Sheet(
        dense,
        rates(one.sparse_rates),
        one.vector_rate.value * per_second if one.vector_rate else dense.get("fp32", 0.0),
        cores.value if cores else 1.0,
        (bandwidth.value if bandwidth else 1.0) * 1e9,
        profile.cache_mb.value * 1e6 if profile.cache_mb else 0.0,
    )


@cache
def fits() -> dict[str, dict[str, dict[str, float]]]:
    """The fitted parameters by name of the fit and dtype, as `edgecompile bench fit` wrote them."""
    text = (resources.files("edgecompile.device_profiles") / "fits.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, dict[str, float]]] = json.loads(text)["fits"]
    return found


def fitted(profile: DeviceProfile) -> Fitted:
    """The parameters of a device; where nothing was fitted, those that its law starts from."""
    return fits().get(profile.fit) or {SHARED: PARAMETERS[profile.law]}


def seconds(
    works: Sequence[Work],
    profile: DeviceProfile,
    dtype: str,
    parameters: Fitted | None = None,
    uniform: bool = True,
    sparse: bool = False,
    on: Sheet | None = None,
) -> Seconds:
    """Every operator's time; `uniform` as in `columns`, `sparse` where all large weights are 2:4.

    Raises `SpecError` where the device has no rate for the dtype.
    """
    on = on or sheet(profile)
    c = columns(works, dtype, uniform)
    missing = sorted(d for d in set(c.dtype) if not on.rate(d))
    if missing:
        has = ", ".join(on.rates)
        raise SpecError(f"{profile.name} does not compute in {', '.join(missing)}; it has {has}")
    found = parameters or fitted(profile)
    shared = found.get(SHARED)
    p = {d: shared or found.get(d) or found.get(COMPUTES_IN.get(d, d)) or next(iter(found.values())) for d in c.dtype}
    return LAWS[profile.law](c, on, p, sparse)
