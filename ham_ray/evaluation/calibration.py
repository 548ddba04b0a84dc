"""Temperature, logit adjustment and thresholds: fitted on validation images only, used where they help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from ham_ray.data.splits import assign_folds
from ham_ray.errors import UserError
from ham_ray.evaluation import metrics, thresholds
from ham_ray.evaluation.intervals import by_predicted
from ham_ray.evaluation.predictions import arrays, classes_of, of_split

Score = Callable[[NDArray, NDArray], float]
# Below 0 for models whose class weights made them call rare classes too often. By size: of equal ones the first wins.
TAUS = sorted(np.round(np.arange(-1.0, 1.51, 0.05), 2).tolist(), key=abs)
_BOUNDS = (0.05, 20.0)  # of a temperature


@dataclass(frozen=True)
class Calibration:
    """A change of probabilities: `p ∝ p^(1/temperature) / prior^tau`.

    Temperature scaling: Guo et al. 2017. Post-hoc logit adjustment: Menon et al. 2021, eq. 9. `thresholds` are of the
    adjusted probability of the class in focus, by name (`thresholds.POINTS`).

    `helps` says whether what was fitted, `tried` (temperature and tau), gives better scores to validation images that
    it was not fitted on: `without` is their score as predicted, `crossed` that after cross-fitting. Where it does not
    help, temperature 1 and tau 0 leave probabilities as they are. Files of older code have none of these four.
    """

    temperature: float
    tau: float
    prior: tuple[float, ...]
    thresholds: dict[str, float] = field(default_factory=dict)
    helps: bool = True
    tried: tuple[float, float] | None = None
    without: float | None = None
    crossed: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the calibration is used, and why, in words."""
        if self.tried is None or self.without is None or self.crossed is None:
            return f"calibrated on validation images: temperature {self.temperature:.2f}, tau {self.tau:.2f}"
        used = "calibrated on validation images" if self.helps else "not calibrated, it does not help"
        return (
            f"{used}: temperature {self.tried[0]:.2f}, tau {self.tried[1]:.2f}, cross-fitted by lesion, give a score "
            f"of {self.crossed:.3f}, {self.without:.3f} without (mean of balanced accuracy and macro-F1)"
        )

    @property
    def applied_values(self) -> dict[str, Any]:
        """The values that change probabilities and decisions, by name."""
        return {name: getattr(self, name) for name in ("temperature", "tau", "prior", "thresholds")}

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Adjust probabilities to float64[N, K], each row summing to 1; unchanged at temperature 1 and tau 0."""
        if self.temperature == 1.0 and self.tau == 0.0:
            return np.asarray(probabilities, np.float64)
        logits = _logs(probabilities) / self.temperature - self.tau * _logs(np.asarray(self.prior))
        return _softmax(logits)

    def applied(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Adjust the probabilities of a PREDICTIONS table, validation and test alike."""
        adjusted = self.apply(arrays(predictions)[1]).astype(np.float32)
        return predictions.assign(**dict(zip(classes_of(predictions).probabilities, adjusted.T, strict=True)))


def mean_ba_macro_f1(truth: NDArray[np.integer], probabilities: NDArray[np.floating]) -> float:
    """Compute the mean of balanced accuracy and macro-F1 for labels int[N] and probabilities [N, K].

    False alarms cost balanced accuracy next to nothing; macro-F1 counts them.
    """
    result, _ = by_predicted(
        truth, probabilities, np.ones((1, len(truth)))
    )  # as metrics has them, a hundred times as fast
    return float(result["balanced_accuracy"][0] + result["macro_f1"][0]) / 2


def fit(predictions: pd.DataFrame, prior: NDArray[np.floating], score: Score = mean_ba_macro_f1) -> Calibration:
    """Fit on validation images: temperature by negative log-likelihood, then tau by the score, then thresholds.

    Args:
        predictions: a PREDICTIONS table; its test images are not looked at.
        prior: float[K], class shares of the training images; a class without any is not adjusted.
        score: takes y_true int[N] and probabilities [N, K]; the greater the better. Of equal taus the one nearest to 0
            wins.

    Raises:
        UserError: there are no validation images; test images are never taken in their place.
    """
    validation = of_split(predictions, "validation")
    if validation.empty:
        splits = ", ".join(map(str, predictions["split"].unique())) or "none"
        raise UserError(f"calibration is fitted on validation images, and there are none (splits: {splits})")
    truth, probabilities = arrays(validation)
    prior = np.where(prior > 0, prior, 1.0)
    fitted = temperature(truth, probabilities)
    candidates = [Calibration(fitted, tau, tuple(prior.tolist())) for tau in TAUS]
    scores = [score(truth, candidate.apply(probabilities)) for candidate in candidates]
    best = candidates[int(np.argmax(scores))]
    stored = best.apply(probabilities).astype(np.float32)  # as PREDICTIONS hold them
    return replace(best, thresholds=thresholds.choose(truth, stored, classes_of(predictions).focus_label))


def chosen(predictions: pd.DataFrame, prior: NDArray[np.floating], score: Score = mean_ba_macro_f1) -> Calibration:
    """Return what `fit` gives where it helps on images it was not fitted on, else a calibration that changes nothing.

    The validation images are dealt into five folds by lesion, and each fold is adjusted by what the other four give.
    The calibration helps where this raises the score. Where this leaves the score as it is, because a temperature
    changes no predicted class, the calibration helps if it lowers the negative log-likelihood.

    Raises:
        UserError: as `fit` does.
    """
    fitted = fit(predictions, prior, score)
    truth, probabilities = arrays(of_split(predictions, "validation"))
    adjusted = _cross_fitted(of_split(predictions, "validation"), prior, score)
    without, crossed = score(truth, probabilities), score(truth, adjusted)
    gain = crossed - without or metrics.nll(truth, probabilities) - metrics.nll(truth, adjusted)
    points = thresholds.choose(truth, probabilities, classes_of(predictions).focus_label)
    used = fitted if gain > 0 else Calibration(1.0, 0.0, fitted.prior, points)
    tried = (fitted.temperature, fitted.tau)
    return replace(used, helps=gain > 0, tried=tried, without=without, crossed=crossed)


def _cross_fitted(validation: pd.DataFrame, prior: NDArray[np.floating], score: Score) -> NDArray[np.floating]:
    """Adjust each image's probabilities by a fit on the images of other folds; unchanged where there is one fold."""
    truth, probabilities = arrays(validation)
    folds = assign_folds(
        validation["image_id"].tolist(), validation["group_id"].tolist(), truth.tolist(), ["training"] * len(truth)
    )
    adjusted = probabilities.astype(np.float64)
    for fold in np.unique(folds) if len(np.unique(folds)) > 1 else []:
        adjusted[folds == fold] = fit(validation[folds != fold], prior, score).apply(probabilities[folds == fold])
    return adjusted


def temperature(truth: NDArray[np.integer], probabilities: NDArray[np.floating]) -> float:
    """Fit the T of least negative log-likelihood of `p^(1/T)`, normalised: above 1 for an overconfident model."""

    def loss(log_temperature: float) -> float:
        return metrics.nll(truth, _softmax(_logs(probabilities) / np.exp(log_temperature)))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_BOUNDS), method="bounded").x))


def temperature_scaled(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Scale probabilities to float64[N, K] by a temperature, without an adjustment for class shares."""
    return _softmax(_logs(probabilities) / temperature)


def _logs(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-12))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
