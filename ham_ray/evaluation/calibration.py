"""Temperature, logit adjustment and thresholds of melanoma: fitted on validation images only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from ham_ray.diagnoses import PROBABILITIES
from ham_ray.errors import UserError
from ham_ray.evaluation import metrics, thresholds
from ham_ray.evaluation.predictions import arrays, of_split

Score = Callable[[NDArray, NDArray], float]
# Below 0 for models whose class weights made them call rare classes too often. By size: of equal ones the first wins.
TAUS = sorted(np.round(np.arange(-1.0, 1.51, 0.05), 2).tolist(), key=abs)
_BOUNDS = (0.05, 20.0)  # of a temperature


@dataclass(frozen=True)
class Calibration:
    """What is done to probabilities: `p ∝ p^(1/temperature) / prior^tau`.

    Temperature scaling: Guo et al. 2017. Post-hoc logit adjustment: Menon et al. 2021, eq. 9. `thresholds` are of the
    adjusted probability of melanoma, by name (`thresholds.POINTS`).
    """

    temperature: float
    tau: float
    prior: tuple[float, ...]
    thresholds: dict[str, float] = field(default_factory=dict)

    def apply(self, probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
        """Adjusted probabilities float64[N, 7], each row summing to 1."""
        logits = _logs(probabilities) / self.temperature - self.tau * _logs(np.asarray(self.prior))
        return _softmax(logits)

    def applied(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """A PREDICTIONS table with adjusted probabilities, validation and test alike."""
        adjusted = self.apply(arrays(predictions)[1]).astype(np.float32)
        return predictions.assign(**dict(zip(PROBABILITIES, adjusted.T, strict=True)))


def compromise(truth: NDArray[np.integer], probabilities: NDArray[np.floating]) -> float:
    """The mean of balanced accuracy, to which false alarms cost next to nothing, and macro-F1, which counts them."""
    return (metrics.balanced_accuracy(truth, probabilities) + metrics.macro_f1(truth, probabilities)) / 2


def fit(predictions: pd.DataFrame, prior: NDArray[np.floating], score: Score = compromise) -> Calibration:
    """The temperature of least negative log-likelihood, the tau of the best score, and thresholds, of validation.

    Args:
        predictions: a PREDICTIONS table; its test images are not looked at.
        prior: float[7], class shares of the training images; a class without any is not adjusted.
        score: takes y_true int[N] and probabilities [N, 7]; the greater the better. Of equal taus the one nearest to 0
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
    warmth = temperature(truth, probabilities)
    candidates = [Calibration(warmth, tau, tuple(prior.tolist())) for tau in TAUS]
    scores = [score(truth, candidate.apply(probabilities)) for candidate in candidates]
    best = candidates[int(np.argmax(scores))]
    stored = best.apply(probabilities).astype(np.float32)  # as PREDICTIONS hold them
    return replace(best, thresholds=thresholds.choose(truth, stored))


def temperature(truth: NDArray[np.integer], probabilities: NDArray[np.floating]) -> float:
    """The T of least negative log-likelihood of `p^(1/T)`, normalised: above 1 for a model that is too sure."""

    def loss(log_temperature: float) -> float:
        return metrics.nll(truth, _softmax(_logs(probabilities) / np.exp(log_temperature)))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_BOUNDS), method="bounded").x))


def warmed(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Probabilities float64[N, 7] at a temperature, without an adjustment for class shares."""
    return _softmax(_logs(probabilities) / temperature)


def _logs(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-12))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
