"""Pictures of a search, from its TRIALS table: history, curves, importances, parallel coordinates."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ham_ray.report.figures import BLUE, GREEN, GREY, ORANGE, STYLE, to_bytes

_STATES = {"complete": ("o", BLUE), "pruned": ("x", GREY), "fail": ("v", ORANGE)}
_COLOURS = "cividis"  # even in brightness, and the same to the colour-blind


def history(trials: pd.DataFrame, objective: str, form: str = "svg") -> bytes:
    """Draw the value of each trial in its order, and the best complete one so far."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.1), layout="constrained")
        axes = figure.subplots()
        for state, (marker, colour) in _STATES.items():
            result = trials[trials["state"] == state]
            values = result[objective].fillna(0.0)  # a failed trial may have none
            if len(result):
                axes.plot(result["trial"], values, marker, color=colour, label=f"{state} ({len(result)})", markersize=5)
        complete = trials[objective].where(trials["state"] == "complete").cummax().ffill()
        axes.step(trials["trial"], complete, where="post", color=GREEN, label="best so far")
        axes.set(xlabel="trial", ylabel=_words(objective))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        return to_bytes(figure, form)


def curves(scores: Mapping[int, Mapping[int, float]], best: int | None, objective: str, form: str = "svg") -> bytes:
    """Draw the score of each trial by epoch; the best trial stands out."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.1), layout="constrained")
        axes = figure.subplots()
        for number, result in scores.items():
            chosen = number == best
            axes.plot(
                list(result),
                list(result.values()),
                marker="o",
                markersize=2.5,
                label=f"trial {number}, the best" if chosen else None,
                color=GREEN if chosen else GREY,
                linewidth=2.2 if chosen else 0.9,
                zorder=3 if chosen else 2,
            )
        axes.set(xlabel="epoch", ylabel=_words(objective))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        if best in scores:
            axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0))
        return to_bytes(figure, form)


def importances(shares: Mapping[str, float], form: str = "svg") -> bytes:
    """Draw a bar a parameter: the share of the values' variance that it explains."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.9 + 0.35 * len(shares)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh([_words(name) for name in shares], list(shares.values()), color=BLUE)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set(xlabel="share of the variance explained (fANOVA)")
        axes.tick_params(axis="y", length=0)
        return to_bytes(figure, form)


def parallel(
    trials: pd.DataFrame,
    parameters: list[str],
    objective: str,
    logarithmic: Collection[str] = (),
    form: str = "svg",
) -> bytes:
    """Draw a line a trial through its values, one axis a parameter; colour is the objective."""
    shown = trials[trials[objective].notna()].sort_values(objective)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots()
        colours = ScalarMappable(Normalize(shown[objective].min(), shown[objective].max()), _COLOURS)
        places = {name: _axis(axes, column, shown[name], name in logarithmic) for column, name in enumerate(parameters)}
        for row, value in enumerate(shown[objective]):
            line = [result[row] for result in places.values()]
            axes.plot(range(len(line)), line, color=colours.to_rgba(value), linewidth=1.3, marker="o", markersize=2.5)
        axes.set_xticks(range(len(parameters)), [_words(name) for name in parameters])
        axes.set_yticks([])
        axes.set_xlim(-0.3, len(parameters) - 0.5)
        axes.spines["left"].set_visible(False)
        figure.colorbar(colours, ax=axes, label=_words(objective))
        return to_bytes(figure, form)


def _axis(axes: Axes, column: int, values: pd.Series, logarithmic: bool) -> np.ndarray:
    """Draw a parameter's axis with its ends; return the heights 0–1 of its values, NaN where it was not searched."""
    if values.dropna().map(lambda value: isinstance(value, str)).any():
        names = sorted(values.dropna().unique())
        heights = values.map({name: index / max(1, len(names) - 1) for index, name in enumerate(names)})
        labels = {heights[values == name].iloc[0]: name for name in names}
    else:
        numbers = values.astype(float)
        low, high = numbers.min(), numbers.max()
        scaled = np.log(numbers) if logarithmic else numbers
        heights = pd.Series((scaled - scaled.min()) / max(scaled.max() - scaled.min(), 1e-12))
        labels = {0.0: f"{low:.3g}", 1.0: f"{high:.3g}"}
    axes.axvline(column, color=GREY, linewidth=0.8)
    for height, label in labels.items():
        axes.annotate(label, (column, height), (4, 3), textcoords="offset points", fontsize=8, color="#333333")
    return heights.to_numpy(float)


def _words(name: str) -> str:
    return name.replace("_", " ")
