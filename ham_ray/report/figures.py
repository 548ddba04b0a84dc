"""Pictures of results as SVG or PNG bytes, drawn with matplotlib's object interface (no pyplot, no global state).

Colours are from Okabe and Ito's colour-blind safe palette and from a blue scale; line styles repeat what colours say.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from ham_ray.evaluation.exact import Interval
from ham_ray.evaluation.metrics import bin_of

UNWEIGHTED = "train_loss_unweighted"  # a column of HISTORY that older runs lack
_PHASES = {"all": "whole network"}  # as they are named in HISTORY
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6b6b6b"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "svg.hashsalt": "ham_ray",  # the same figure is the same file
}


def confusion_matrix(counts: NDArray[np.integer], codes: Sequence[str], form: str = "svg") -> bytes:
    """Draw a confusion matrix int[K, K] (rows: true classes): counts and, as colour and below, shares of each row."""
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.0), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            _matrix_cell(axes, row, column, count, shares[row, column])
        axes.set_xticks(range(len(codes)), codes)
        axes.set_yticks(range(len(codes)), [f"{dx}\n({n})" for dx, n in zip(codes, counts.sum(axis=1), strict=True)])
        axes.set(xlabel="predicted", ylabel="true (images)")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return to_bytes(figure, form)


def learning_curves(history: pd.DataFrame, form: str = "svg") -> bytes:
    """Draw losses, validation scores and learning rate by epoch of a HISTORY table.

    The training loss is the unweighted one where the table has it: only that is comparable with the validation loss.
    The kept epoch (`best`) is a dotted line; a change of `phase` (head, then fine-tuning) is a grey line with its name.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.1), layout="constrained")
        losses, scores, rate = figure.subplots(1, 3)
        trained = {UNWEIGHTED: "training"} if UNWEIGHTED in history else {"train_loss": "training, weighted"}
        _lines(losses, history, {**trained, "validation_loss": "validation"}, "loss")
        names = {"validation_macro_f1": "macro-F1", "validation_balanced_accuracy": "balanced accuracy"}
        _lines(scores, history, names, "validation")
        scores.set_ylim(0, 1)
        _lines(rate, history, {"learning_rate": "learning rate"}, "learning rate")
        rate.set_ylim(0, 1.2 * history["learning_rate"].max())
        rate.yaxis.set_major_formatter("{x:.1e}")
        for axes in (losses, scores, rate):
            _mark_phases(axes, history)
            _mark_best(axes, history)
        return to_bytes(figure, form)


def interval_plot(values: Mapping[str, Mapping[str, Interval]], titles: Mapping[str, str], form: str = "svg") -> bytes:
    """Draw values with their intervals: one panel a metric, one line a model.

    Args:
        values: model -> metric -> interval; a metric a model lacks is left blank.
        titles: metric -> title of its panel.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 0.9 + 0.3 * len(values)), layout="constrained")
        panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for axes, (metric, title) in zip(panels, titles.items(), strict=True):
            _interval_panel(axes, [result.get(metric) for result in values.values()])
            axes.set_title(title)
        panels[0].set_yticks(range(len(values)), list(values))
        panels[0].invert_yaxis()
        return to_bytes(figure, form)


def class_curves(positive: NDArray[np.bool_], score: NDArray[np.floating], name: str, form: str = "svg") -> bytes:
    """Draw ROC and precision-recall curve of a class against all else, of positive bool[N] and score[N]."""
    false, true, _ = roc_curve(positive, score)
    precision, recall, _ = precision_recall_curve(positive, score)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], ":", color=GREY, label="chance")
        left.plot(false, true, color=BLUE, label="this model")
        left.set(title=f"ROC of {name}", xlabel="1 − specificity", ylabel="sensitivity")
        right.axhline(positive.mean(), linestyle=":", color=GREY, label="chance")
        right.plot(recall, precision, color=BLUE, drawstyle="steps-post", label="this model")
        right.set(title=f"precision and recall of {name}", xlabel="sensitivity (recall)", ylabel="PPV (precision)")
        for axes in (left, right):
            axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
            axes.legend(frameon=False, fontsize=8, loc="lower right" if axes is left else "upper right")
        return to_bytes(figure, form)


def reliability(
    truth: NDArray[np.integer], versions: Mapping[str, NDArray[np.floating]], bins: int = 10, form: str = "svg"
) -> bytes:
    """Draw how often the predicted class is right, by its probability: a panel for each version of p[N, K].

    `truth` is int[N]. Bars below show how many images each of the `bins` has.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * len(versions), 3.9), layout="constrained")
        grid = figure.subplots(2, len(versions), height_ratios=[4, 1], sharex=True, squeeze=False)
        for column, (name, p) in enumerate(versions.items()):
            confidence = p.max(axis=1)
            index = bin_of(confidence, bins)
            counts = np.bincount(index, minlength=bins)
            shown = counts > 0
            sure = np.bincount(index, confidence, bins)[shown] / counts[shown]
            right = np.bincount(index, p.argmax(axis=1) == truth, bins)[shown] / counts[shown]
            upper, lower = grid[0, column], grid[1, column]
            upper.plot([0, 1], [0, 1], ":", color=GREY, label="perfect calibration")
            upper.plot(sure, right, "o-", color=BLUE, markersize=4, label="this model")
            upper.set(title=name, xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy" if not column else "")
            upper.legend(frameon=False, fontsize=8, loc="upper left")
            lower.bar((np.arange(bins) + 0.5) / bins, counts, 0.9 / bins, color=GREY)
            lower.set(xlabel="confidence: probability of the predicted class", ylabel="images" if not column else "")
        return to_bytes(figure, form)


def cell_ink(share: float, count: int) -> str:
    """Return the colour of a matrix cell's text: at least 4.5 to 1 against its ground (WCAG 2.2, AA)."""
    return "white" if share > 0.72 else "black" if count else GREY


def _matrix_cell(axes: Axes, row: int, column: int, count: int, share: float) -> None:
    colour = cell_ink(share, count)
    percent = f"{100 * share:.0f} %" if share >= 0.005 else "<1 %"
    text = f"{count}\n{percent}" if count else "0"
    axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8.5)


def _lines(axes: Axes, history: pd.DataFrame, names: Mapping[str, str], title: str) -> None:
    """Draw one line a column; markers keep a history of one epoch visible."""
    for (column, name), (colour, style) in zip(names.items(), ((BLUE, "-"), (ORANGE, "--")), strict=False):
        axes.plot(history["epoch"], history[column], style, color=colour, label=name, marker="o", markersize=3)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    if len(names) > 1:
        # on the line of the title: inside the panel it would hide curves or notes
        axes.legend(
            frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.02, 0.985), columnspacing=1
        )


def _mark_best(axes: Axes, history: pd.DataFrame) -> None:
    best = history.loc[history["best"].astype(bool), "epoch"]
    if len(best):
        axes.axvline(best.iloc[-1], color=GREEN, linestyle=":", linewidth=1.5)
        _note(axes, best.iloc[-1], f"kept: {best.iloc[-1]}")


def _mark_phases(axes: Axes, history: pd.DataFrame) -> None:
    phase = history["phase"].to_numpy()
    for index in np.flatnonzero(phase[1:] != phase[:-1]) + 1:
        boundary = history["epoch"].iloc[index] - 0.5
        axes.axvline(boundary, color=GREY, linewidth=0.8)
        _note(axes, boundary, _PHASES.get(phase[index], str(phase[index])))


def _note(axes: Axes, x: float, text: str) -> None:
    """Write a word beside a vertical line at the top of the panel, on the side with more room."""
    left, right = axes.get_xlim()
    side, offset = ("left", 3) if x < (left + right) / 2 else ("right", -3)
    axes.annotate(
        text,
        (x, 1),
        (offset, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha=side,
        va="top",
        color=GREY,
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},  # a curve may pass behind it
    )


def _interval_panel(axes: Axes, result: Sequence[Interval | None]) -> None:
    for index, interval in enumerate(result):
        if interval is None:
            continue
        if interval.low is not None and interval.high is not None:
            axes.plot(
                [interval.low, interval.high],
                [index, index],
                color=BLUE,
                linewidth=4,
                alpha=0.35,
                solid_capstyle="butt",
            )
        axes.plot(interval.value, index, "o", color=BLUE, markersize=4.5, clip_on=False, zorder=3)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def to_bytes(figure: Figure, form: str) -> bytes:
    """Return a figure as a file's content, "svg" or "png"."""
    buffer = io.BytesIO()
    # without a date the same figure is the same file
    figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
