"""A deployment of several artifacts: each built and reported for itself, and one report over all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompile import errors
from edgecompile.building.finish import write_report
from edgecompile.building.other_reports import failed
from edgecompile.errors import EdgeCompileError
from edgecompile.report import BuildRow, Report
from edgecompile.teacher import Teacher

if TYPE_CHECKING:
    from edgecompile.building.jobs import Job

REPORTS = "reports"


def several(teacher: Teacher, jobs: Sequence[Job], run: Callable[[Teacher, Job], Report]) -> Report:
    """Build every artifact; one that cannot be built does not keep the others from it, and the exit code says so.

    The reports lie in OUT/reports, the one over all in OUT: that of the first artifact that was built, with a row for
    each. Bugs and Ctrl-C end the whole build.
    """
    out = Path(jobs[0].options.out)
    found: list[Report] = []
    for job in jobs:
        try:
            report = run(teacher, job)
        except EdgeCompileError as error:
            own = dataclasses.replace(job.options, target=job.name)
            report = dataclasses.replace(failed(teacher.name, own, error), device=job.device.name)
        write_report(out / REPORTS / job.name, report)
        found.append(report)
    rows = tuple(
        BuildRow(
            job.name,
            job.primary,
            report.exit_code,
            f"{REPORTS}/{job.name}/report.html",
            report.latency_ms,
            report.score.artifact if report.score else None,
            report.size_bytes,
        )
        for job, report in zip(jobs, found, strict=True)
    )
    codes = tuple(sorted({code for report in found for code in report.exit_codes or (report.exit_code,) if code}))
    leading = next((r for r in found if r.artifacts), found[0])
    refusals = tuple(dict.fromkeys(r for report in found for r in report.refusals))
    whole = dataclasses.replace(
        leading,
        target=jobs[0].options.target,
        exit_code=errors.first_code(codes),
        exit_codes=codes,
        refusals=refusals,
        builds=rows,
    )
    write_report(out, whole)
    return whole
