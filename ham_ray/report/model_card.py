"""The model card: the page's facts in plain Markdown, in the order of Mitchell et al., "Model cards" (FAT* 2019)."""

from __future__ import annotations

import re

import yaml

from ham_ray.data import datasets
from ham_ray.report.report import POINT_NAMES, ReportData, environment

_TAGS = ["image-classification", "dermatology", "dermatoscopy", "skin-lesions", "keras"]


def render(data: ReportData) -> str:
    """Write the card of all models of a page as Markdown, with the YAML head that model hubs read."""
    result = {name: run.assessment for name, run in data.runs.items() if run.predictions is not None}
    made = environment(escape=False)
    made.filters |= {"markdown": markdown, "code": code}
    images = data.counts.loc[:, [column for column in data.counts.columns if column[1] == "images"]].sum(axis=1)
    return made.get_template("model_card.md.jinja").render(
        data=data,
        head=_head(data),
        summary=data.summary,
        metric_names=data.summary.metric_names,
        point_names=POINT_NAMES,
        classes=data.classes,
        most_frequent=str(images.drop("all").idxmax()),
        most_share=images.drop("all").max() / max(images["all"], 1),
        limits=dataset.limits if (dataset := datasets.of_classes(data.classes)) else (),
        ece={name: assessment.metrics["ece"] for name, assessment in result.items()},
        points={name: assessment.points for name, assessment in result.items()},
        subgroups={name: assessment.subgroups for name, assessment in result.items()},
    )


def markdown(text: object) -> str:
    """Escape text from data, file names or messages as one line of Markdown that shows it, whatever it holds."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())
    return re.sub(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def code(text: object) -> str:
    """Write text as a code span on one line, fenced by more backticks than it holds."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def _head(data: ReportData) -> str:
    """Write licence, tags and metrics as the YAML that model hubs read."""
    content = {
        "license": "cc-by-nc-4.0" if data.licence.startswith("CC BY-NC 4.0") else "other",
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": _TAGS,
        "metrics": ["accuracy", "balanced_accuracy", "f1", "roc_auc"],
    }
    return yaml.safe_dump(content, sort_keys=False)
