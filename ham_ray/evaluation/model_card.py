"""The model card: the page's facts in plain Markdown, in the order of Mitchell et al., "Model cards" (FAT* 2019)."""

from __future__ import annotations

from ham_ray.evaluation.report import POINT_NAMES, ReportData, environment
from ham_ray.evaluation.summary import METRIC_NAMES


def render(data: ReportData) -> str:
    """The card of all models of a page as Markdown."""
    found = {name: run.assessment for name, run in data.runs.items() if run.predictions is not None}
    return (
        environment(escape=False)
        .get_template("model_card.md.jinja")
        .render(
            data=data,
            summary=data.summary,
            metric_names=METRIC_NAMES,
            point_names=POINT_NAMES,
            points={name: assessment.melanoma for name, assessment in found.items()},
            subgroups={name: assessment.subgroups for name, assessment in found.items()},
        )
    )
