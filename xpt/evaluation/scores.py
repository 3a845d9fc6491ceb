"""The evaluation of predictions: thresholds and temperatures from validation, everything else on test.

Shape suffixes: N films, C findings or classes, R bootstrap draws.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from xpt.evaluation.predictions import Predictions
from xpt.metrics import (
    Statistic,
    auroc_draws,
    average_precision_draws,
    bootstrap,
    expected_calibration_error,
    fit_temperature,
    interval_of,
    paired_difference,
    sensitivity_specificity,
    youden_threshold,
)

DRAWS = 2000
MEASURES = {"auroc": auroc_draws, "average_precision": average_precision_draws}


def scores_of(val: Predictions, test: Predictions) -> dict[str, Any]:
    """Numbers per finding and their means, ready for JSON; NaN where the films do not define one.

    Thresholds have the largest sensitivity + specificity on `val`; temperatures are fitted on `val`, one
    per finding, or one for all classes.
    """
    temperature_C = temperatures(val)
    probability_NC, calibrated_NC = test.probabilities(), test.probabilities(temperature_C)
    val_NC = val.probabilities()
    findings, drawn = {}, {name: [] for name in MEASURES}
    for c, name in enumerate(test.findings):
        known, val_known = test.known(c), val.known(c)
        positive, score = test.target_NC[known, c] > 0.5, probability_NC[known, c]
        row: dict[str, Any] = {"films": int(known.sum()), "positives": int(positive.sum())}
        for measure in MEASURES:
            statistic = _statistic(test, c, measure)
            drawn_R = bootstrap(statistic, test.patients, draws=DRAWS)
            value = float(statistic(np.ones((1, len(test.keys))))[0])
            row[measure] = asdict(interval_of(value, drawn_R))
            if not np.isnan(value):
                drawn[measure].append((value, drawn_R))
        threshold = youden_threshold(val.target_NC[val_known, c] > 0.5, val_NC[val_known, c])
        row["threshold"] = threshold
        undefined = (np.nan, np.nan)
        row["sensitivity"], row["specificity"] = (
            undefined if np.isnan(threshold) else sensitivity_specificity(positive, score, threshold)
        )
        row["temperature"] = float(temperature_C[c])
        row["calibration_error"] = expected_calibration_error(positive, score)
        if not np.isnan(temperature_C[c]):
            row["calibration_error_tempered"] = expected_calibration_error(positive, calibrated_NC[known, c])
        findings[name] = row
    means = {
        measure: {
            **asdict(
                interval_of(
                    float(np.mean([v for v, _ in parts])) if parts else np.nan,
                    # A draw counts where it defines every finding of the mean.
                    np.mean([d for _, d in parts], 0) if parts else np.full(DRAWS, np.nan),
                )
            ),
            "findings": len(parts),
        }
        for measure, parts in drawn.items()
    }
    undefined = [name for name, row in findings.items() if np.isnan(row["auroc"]["value"])]
    return {
        "films": len(test.keys),
        "patients": len(set(test.patients)),
        "draws": DRAWS,
        "mean": means,
        "findings": findings,
        "undefined": undefined,
    }


def temperatures(val: Predictions) -> np.ndarray:
    """[C]: fitted on validation; under `multi_class` the same for all; NaN where nothing is known."""
    if val.kind == "multi_class":
        known = val.known(0)
        shared = fit_temperature(val.target_NC[known].argmax(1), val.logit_NC[known])
        return np.full(len(val.findings), shared)
    fitted = []
    for c in range(len(val.findings)):
        known = val.known(c)
        logit_N = val.logit_NC[known, c]
        two_N2 = np.stack([np.zeros_like(logit_N), logit_N], 1)
        fitted.append(fit_temperature((val.target_NC[known, c] > 0.5).astype(np.int64), two_N2))
    return np.array(fitted)


def compared(ours: Predictions, theirs: Predictions) -> dict[str, Any]:
    """AUROC of ours minus theirs, per finding and in the mean, on the same films; paired, by patient.

    Raises ValueError where the two are not about the same films, findings and labels.
    """
    if ours.findings != theirs.findings or ours.keys != theirs.keys:
        raise ValueError(
            f"the two runs do not compare: {len(ours.keys)} films and {', '.join(ours.findings)} here, "
            f"{len(theirs.keys)} films and {', '.join(theirs.findings)} there. "
            "Evaluate both on the same shards."
        )
    if not np.array_equal(ours.target_NC, theirs.target_NC, equal_nan=True):
        raise ValueError("the two runs do not compare: their labels differ; use the same rules for them")
    pairs = [
        (_statistic(ours, c, "auroc"), _statistic(theirs, c, "auroc")) for c in range(len(ours.findings))
    ]
    ones = np.ones((1, len(ours.keys)))
    defined = [pair for pair in pairs if not np.isnan(pair[0](ones)[0])]

    def mean(place: int) -> Statistic:
        return lambda weight_RN: np.mean([pair[place](weight_RN) for pair in defined], 0)

    def row(one: Statistic, other: Statistic) -> dict[str, Any]:
        found = paired_difference(one, other, ours.patients, draws=DRAWS)
        return {**asdict(found.interval), "p_value": found.p_value}

    return {
        "mean": row(mean(0), mean(1)) if defined else None,
        "findings": {name: row(*pair) for name, pair in zip(ours.findings, pairs, strict=True)},
    }


def _statistic(predictions: Predictions, finding: int, measure: str) -> Statistic:
    """The measure of one finding over its known films, for weights of all films."""
    known = predictions.known(finding)
    positive_N = predictions.target_NC[known, finding] > 0.5
    score_N = predictions.probabilities()[known, finding]
    return lambda weight_RN: MEASURES[measure](positive_N, score_N, weight_RN[:, known])
