"""What was typed as jobs: one an artifact, everything read and checked, and nothing done yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgecompile.building.options import Budgets, BuildOptions, deployment
from edgecompile.device import DeviceProfile
from edgecompile.errors import SpecError
from edgecompile.pass_manager import Pass, parse, parse_one
from edgecompile.spec import Call
from edgecompile.target import Target


@dataclass(frozen=True)
class Job:
    """One artifact to build: everything that was typed, read and checked, and nothing done yet."""

    options: BuildOptions
    budgets: Budgets
    name: str
    target: Target
    device: DeviceProfile
    threads: int
    passes: tuple[Pass, ...] | None = None
    primary: bool = True
    rivals: tuple[Target, ...] = ()
    """Other targets for the same program: where the device is this machine, the fastest is the result."""
    suffix: str = ""
    """What tells the artifacts of several latency budgets apart."""


def prepare(options: BuildOptions, passes: Sequence[Pass] | None = None, own: Target | None = None) -> tuple[Job, ...]:
    """Read everything that can be wrong without looking at the model; a job an artifact, the primary ones first."""
    from edgecompile.passes import PASSES
    from edgecompile.targets import DEPLOYMENTS, PRIMARY

    if options.preset is not None and (options.pipeline is not None or passes is not None):
        raise SpecError(f"--preset {options.preset}: chooses the passes: give it or a pipeline, not both")
    if options.pipeline is not None:
        parse(options.pipeline, PASSES)
        if passes is not None:
            raise SpecError("build: give a pipeline or passes, not both")
    given = None if passes is None else tuple(passes)
    pairs = deployment(options.target, options.device, DEPLOYMENTS)
    if own is not None:
        pairs = pairs[:1]
    bound = PRIMARY.get(options.target, 1)
    jobs = tuple(
        _job(one, calls, device, given, own, len(pairs) > 1, index < bound, suffix)
        for suffix, one in _by_budget(options)
        for index, (calls, device) in enumerate(pairs)
    )
    if options.tune is not None and not any(getattr(t, "tune", "") for job in jobs for t in (job.target, *job.rivals)):
        raise SpecError(f"--tune {options.tune}: no artifact of {options.target} measures kernels here; tvm@host does")
    return jobs


def _by_budget(options: BuildOptions) -> list[tuple[str, BuildOptions]]:
    """The options once for each latency budget that is given, with what its artifacts are called by."""
    texts = [t.strip() for t in (options.max_latency or "").split(",")]
    if len(texts) == 1:
        return [("", options)]
    if "" in texts:
        raise SpecError(f"--max-latency {options.max_latency!r}: a budget between the commas is missing")
    twice = next((t for t in texts if texts.count(t) > 1), None)
    if twice is not None:
        raise SpecError(f"--max-latency {options.max_latency!r}: {twice!r} is given twice")
    return [("-" + t.replace("%", "pct").replace(":", "-"), replace(options, max_latency=t)) for t in texts]


def _job(
    options: BuildOptions,
    calls: tuple[Call, ...],
    device_name: str,
    passes: tuple[Pass, ...] | None,
    own: Target | None,
    several: bool,
    primary: bool,
    suffix: str,
) -> Job:
    from edgecompile.targets import TARGETS

    target, *rivals = [own] if own else [parse_one(call, TARGETS, "--target") for call in calls]
    if options.tune is not None:
        target, rivals = target.tuning(options.tune), [rival.tuning(options.tune) for rival in rivals]
    device = DeviceProfile.load(device_name)
    name = options.target
    if several:
        name = device.name if rivals else f"{target.name}@{device.name}"
    budgets = options.budgets()
    if not primary:  # budgets bind the primary artifacts; the others are labelled
        budgets = replace(budgets, latency=None, drop_pp=None, size_bytes=None, size_percent=None)
    threads = options.threads or device.threads
    return Job(options, budgets, name + suffix, target, device, threads, passes, primary, tuple(rivals), suffix)
