"""How good scores are: discrimination, thresholds, calibration, and how sure one may be of them.

Shape suffixes: N films, C findings or classes, R bootstrap draws, T distinct scores.

A number that the films do not define (the AUROC of a finding that nobody has) is NaN, never left out
of sight: whoever averages says over how many findings. Definitions are scikit-learn's, to which the
tests compare them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

MAX_CELLS = 2**22
"""Weights (draws x films) in memory at a time."""


def auroc(is_positive_N: Bool[np.ndarray, "N"], score_N: Float[np.ndarray, "N"]) -> float:
    """Probability that a positive scores above a negative, ties counting half; NaN without both."""
    return float(auroc_draws(is_positive_N, score_N, np.ones((1, len(score_N))))[0])


def average_precision(is_positive_N: Bool[np.ndarray, "N"], score_N: Float[np.ndarray, "N"]) -> float:
    """Area under the precision-recall curve as a sum of steps (AUPRC); NaN without a positive."""
    return float(average_precision_draws(is_positive_N, score_N, np.ones((1, len(score_N))))[0])


def auroc_draws(
    is_positive_N: Bool[np.ndarray, "N"],
    score_N: Float[np.ndarray, "N"],
    weight_RN: Float[np.ndarray, "R N"],
) -> Float[np.ndarray, "R"]:
    """AUROC under each row of weights."""
    positive_RT, negative_RT = _by_distinct_score(is_positive_N, score_N, weight_RN)
    below_RT = np.cumsum(negative_RT, 1) - negative_RT
    pairs_R = positive_RT.sum(1) * negative_RT.sum(1)
    return _ratio((positive_RT * (below_RT + 0.5 * negative_RT)).sum(1), pairs_R)


def average_precision_draws(
    is_positive_N: Bool[np.ndarray, "N"],
    score_N: Float[np.ndarray, "N"],
    weight_RN: Float[np.ndarray, "R N"],
) -> Float[np.ndarray, "R"]:
    """Average precision under each row of weights."""
    positive_RT, negative_RT = (x[:, ::-1] for x in _by_distinct_score(is_positive_N, score_N, weight_RN))
    found_RT = np.cumsum(positive_RT, 1)
    called_RT = found_RT + np.cumsum(negative_RT, 1)
    precision_RT = np.divide(found_RT, called_RT, out=np.zeros_like(found_RT), where=called_RT > 0)
    return _ratio((positive_RT * precision_RT).sum(1), positive_RT.sum(1))


def _by_distinct_score(
    is_positive_N: np.ndarray, score_N: np.ndarray, weight_RN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[R, T] twice: weight of positives and of negatives at each distinct score, in rising order."""
    _check_scores(is_positive_N, score_N)
    if not len(score_N):
        empty = np.zeros((len(weight_RN), 0))
        return empty, empty
    order_N = np.argsort(score_N, kind="stable")
    sorted_N, sorted_RN = score_N[order_N], weight_RN[:, order_N]
    first_T = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
    is_positive_N = is_positive_N[order_N]
    return (
        np.add.reduceat(sorted_RN * is_positive_N, first_T, axis=1),
        np.add.reduceat(sorted_RN * ~is_positive_N, first_T, axis=1),
    )


def _check_scores(is_positive_N: np.ndarray, score_N: np.ndarray) -> None:
    if len(is_positive_N) != len(score_N) or not np.isfinite(score_N).all():
        raise ValueError(
            f"scores: got {len(score_N)} for {len(is_positive_N)} films, "
            f"{int((~np.isfinite(score_N)).sum())} of them not finite; wanted one finite score per film"
        )


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


class Curve(NamedTuple):
    """One point per distinct score, from "none is called positive" to "all are"."""

    threshold_T: Float[np.ndarray, "T"]
    """Called positive from here on; infinite at the first point."""
    sensitivity_T: Float[np.ndarray, "T"]
    specificity_T: Float[np.ndarray, "T"]


def roc_curve(is_positive_N: Bool[np.ndarray, "N"], score_N: Float[np.ndarray, "N"]) -> Curve:
    """Sensitivity and specificity at every threshold; NaN where positives or negatives are missing."""
    positive_T, negative_T = (
        x[0, ::-1] for x in _by_distinct_score(is_positive_N, score_N, np.ones((1, len(score_N))))
    )
    with np.errstate(invalid="ignore"):
        sensitivity_T = np.r_[0, np.cumsum(positive_T)] / positive_T.sum()
        specificity_T = 1 - np.r_[0, np.cumsum(negative_T)] / negative_T.sum()
    return Curve(np.r_[np.inf, np.unique(score_N)[::-1]], sensitivity_T, specificity_T)


def sensitivity_specificity(
    is_positive_N: Bool[np.ndarray, "N"], score_N: Float[np.ndarray, "N"], threshold: float
) -> tuple[float, float]:
    """Shares of positives at or above the threshold and of negatives below it; NaN where there are none."""
    _check_scores(is_positive_N, score_N)
    is_called_N = score_N >= threshold
    hits, alarms = (is_called_N & is_positive_N).sum(), (is_called_N & ~is_positive_N).sum()
    positives = is_positive_N.sum()
    negatives = len(is_positive_N) - positives
    return (
        float(hits / positives) if positives else np.nan,
        float(1 - alarms / negatives) if negatives else np.nan,
    )


def youden_threshold(is_positive_N: Bool[np.ndarray, "N"], score_N: Float[np.ndarray, "N"]) -> float:
    """The highest threshold with the largest sensitivity + specificity; NaN where one is undefined."""
    curve = roc_curve(is_positive_N, score_N)
    youden_T = curve.sensitivity_T + curve.specificity_T
    if np.isnan(youden_T).any():
        return np.nan
    return float(curve.threshold_T[1:][np.argmax(youden_T[1:])])


class Reliability(NamedTuple):
    """What was foretold beside what came, per bin that holds a film."""

    predicted_bins: Float[np.ndarray, "bins"]
    """Mean probability."""
    observed_bins: Float[np.ndarray, "bins"]
    """Share of positives."""
    count_bins: Int[np.ndarray, "bins"]


def reliability(
    is_positive_N: Bool[np.ndarray, "N"], probability_N: Float[np.ndarray, "N"], bins: int = 15
) -> Reliability:
    """Films in bins of equal width of their probability: (0, 1/bins], ..., 0 in the first."""
    _check_scores(is_positive_N, probability_N)
    if len(probability_N) and not (probability_N.min() >= 0 and probability_N.max() <= 1):
        raise ValueError(
            f"probabilities: got {probability_N.min()} to {probability_N.max()}, wanted 0 to 1; "
            "logits go through a sigmoid or softmax first"
        )
    bin_N = np.clip(np.ceil(probability_N * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(bin_N, minlength=bins)
    held = count > 0
    predicted, observed = (
        np.bincount(bin_N, x_N, minlength=bins)[held] / count[held] for x_N in (probability_N, is_positive_N)
    )
    return Reliability(predicted, observed, count[held])


def expected_calibration_error(
    is_positive_N: Bool[np.ndarray, "N"], probability_N: Float[np.ndarray, "N"], bins: int = 15
) -> float:
    """Mean distance of foretold and observed over the bins, by films (Guo et al., arXiv 1706.04599)."""
    if not len(probability_N):
        return np.nan
    predicted, observed, count = reliability(is_positive_N, probability_N, bins)
    return float((np.abs(predicted - observed) * count).sum() / count.sum())


def softmax(logit_NC: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    shifted_NC = np.exp(logit_NC - logit_NC.max(1, keepdims=True))
    return shifted_NC / shifted_NC.sum(1, keepdims=True)


def sigmoid(logit: Float[np.ndarray, "*S"]) -> Float[np.ndarray, "*S"]:
    return np.exp(-np.logaddexp(0, -logit))


def fit_temperature(class_N: Int[np.ndarray, "N"], logit_NC: Float[np.ndarray, "N C"]) -> float:
    """The T in [0.05, 20] for which softmax(logits / T) makes the classes most likely.

    A finding that is present or not is the two classes with logits (0, z). The negative log-likelihood is
    convex in 1/T, so its slope, expected minus true logit, has one zero: found by bisection.
    NaN without films.
    """
    if not len(class_N):
        return np.nan
    true_N = logit_NC[np.arange(len(class_N)), class_N]

    def slope(inverse: float) -> float:
        return float(((softmax(inverse * logit_NC) * logit_NC).sum(1) - true_N).mean())

    low, high = 1 / 20, 20.0
    if slope(low) >= 0:
        return 1 / low
    if slope(high) <= 0:
        return 1 / high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the middle 95% of what resampled patients give."""

    value: float
    low: float
    high: float
    defined: int
    """Draws that define the value; the others (a finding that no drawn patient has) are not counted."""


Statistic = Callable[[Float[np.ndarray, "R N"]], Float[np.ndarray, "R"]]
"""A number for each row of film weights."""


def bootstrap(
    statistic: Statistic, patients: list[str], *, draws: int = 2000, seed: int = 0
) -> Float[np.ndarray, "R"]:
    """`statistic` on `draws` samples of as many patients, with replacement; each brings all its films."""
    return np.concatenate([statistic(weight_RN) for weight_RN in _weights(patients, draws, seed)])


def interval(statistic: Statistic, patients: list[str], *, draws: int = 2000, seed: int = 0) -> Interval:
    """The percentile interval at 95% (Efron and Tibshirani 1993, chapter 13), by patient."""
    value = float(statistic(np.ones((1, len(patients))))[0])
    drawn_R = bootstrap(statistic, patients, draws=draws, seed=seed)
    return interval_of(value, drawn_R)


def interval_of(value: float, drawn_R: Float[np.ndarray, "R"]) -> Interval:
    """`value` with the middle 95% of what the draws gave."""
    defined_R = drawn_R[~np.isnan(drawn_R)]
    low, high = np.percentile(defined_R, [2.5, 97.5]) if len(defined_R) else (np.nan, np.nan)
    return Interval(value=value, low=float(low), high=float(high), defined=len(defined_R))


class Difference(NamedTuple):
    interval: Interval
    p_value: float
    """Two-sided: twice the share of draws on the other side of zero, at least 2 / (draws + 1)."""


def paired_difference(
    ours: Statistic, theirs: Statistic, patients: list[str], *, draws: int = 2000, seed: int = 0
) -> Difference:
    """Ours minus theirs on the same films, both on the same drawn patients."""

    def difference(weight_RN: np.ndarray) -> np.ndarray:
        return ours(weight_RN) - theirs(weight_RN)

    value = float(difference(np.ones((1, len(patients))))[0])
    drawn_R = bootstrap(difference, patients, draws=draws, seed=seed)
    found = interval_of(value, drawn_R)
    defined_R = drawn_R[~np.isnan(drawn_R)]
    tail = min((defined_R <= 0).sum(), (defined_R >= 0).sum())
    p_value = min(1.0, 2 * (tail + 1) / (len(defined_R) + 1)) if len(defined_R) else np.nan
    return Difference(found, float(p_value))


def _weights(patients: list[str], draws: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of film weights, [R, N] float64, a part at a time: how often each film's patient was drawn."""
    names, patient_N = np.unique(np.array(patients, dtype=object), return_inverse=True)
    rng = np.random.default_rng(seed)
    count = len(names)
    rows = max(1, MAX_CELLS // max(1, len(patients)))
    for first in range(0, draws, rows):
        drawn = min(rows, draws - first)
        chosen = rng.integers(count, size=(drawn, count)) + count * np.arange(drawn)[:, None]
        times = np.bincount(chosen.ravel(), minlength=drawn * count).reshape(drawn, count)
        yield times[:, patient_N].astype(np.float64)
