"""The report of a build: what each pass bought, what was measured; as JSON, a table and a page."""

from edgecompile.report.compare import Difference, differences, render_comparison
from edgecompile.report.html import render_html
from edgecompile.report.json_form import SCHEMA_VERSION, from_json, to_json
from edgecompile.report.model import (
    ArtifactFile,
    Budget,
    BuildRow,
    Decision,
    Figure,
    InputSpec,
    Kind,
    LayerDrift,
    Model,
    Ratio,
    Refusal,
    Report,
    Rounds,
    Score,
    StepRow,
    Verify,
)
from edgecompile.report.text import render

__all__ = [
    "SCHEMA_VERSION",
    "ArtifactFile",
    "Budget",
    "BuildRow",
    "Decision",
    "Difference",
    "Figure",
    "InputSpec",
    "Kind",
    "LayerDrift",
    "Model",
    "Ratio",
    "Refusal",
    "Report",
    "Rounds",
    "Score",
    "StepRow",
    "Verify",
    "differences",
    "from_json",
    "render",
    "render_comparison",
    "render_html",
    "to_json",
]
