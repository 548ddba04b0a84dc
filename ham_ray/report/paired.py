"""Models compared in pairs, on the images that both have predicted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from ham_ray.console import progress
from ham_ray.evaluation import assessment
from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.intervals import paired_differences
from ham_ray.models.trivial_baselines import THUMBNAIL_BASELINE
from ham_ray.report.summary import Run

COMPARED = ("balanced_accuracy", "macro_f1", "accuracy")  # the last is what McNemar's test is of


class Difference(NamedTuple):
    """How much better one model is than another, by metric, on the same images.

    `shared` counts the images that both have predicted; `images` those that only one of the two gets right; `p` is the
    p value of the latter, adjusted for all comparisons made.
    """

    model: str
    other: str
    shared: int
    by: dict[str, Interval]
    images: assessment.McNemar
    p: float


def differences(
    runs: Mapping[str, Run], trivial: Mapping[str, pd.DataFrame], pairs: Iterable[tuple[str, str]] = ()
) -> list[Difference]:
    """Compare each of the pairs, and each run with the thumbnail baseline, on the images that both have predicted."""
    tests = {name: assessment.reported(table) for name, table in trivial.items()}
    tests |= {name: run.assessment.images for name, run in runs.items() if run.predictions is not None}
    asked = dict.fromkeys([*pairs, *((name, THUMBNAIL_BASELINE) for name in runs)])
    both = {pair: shared(tests[pair[0]], tests[pair[1]]) for pair in asked if set(pair) <= set(tests)}
    both = {pair: tables for pair, tables in both.items() if len(tables[0])}
    counted = [assessment.mcnemar(*tables) for tables in both.values()]
    adjusted = assessment.holm([result.p_value for result in counted])
    result: list[Difference] = []
    with progress("comparisons", "pairs") as advance:
        for (pair, tables), images, p in zip(both.items(), counted, adjusted, strict=True):
            advance(len(result), len(both))
            result.append(Difference(*pair, len(tables[0]), paired_differences(*tables, COMPARED), images, p))
    return result


def shared(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of each table whose images are in both."""
    return first[first["image_id"].isin(second["image_id"])], second[second["image_id"].isin(first["image_id"])]
