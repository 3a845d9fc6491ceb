"""One HTML page about a model: numbers, ROC curves, calibration, example films with heat maps.

Everything is in the one file (pictures as data URLs, curves as SVG): it opens without a server or a network.
"""

import html
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from xpt.evaluation.html import differences, document, jpeg_url, number, span, table
from xpt.evaluation.predictions import Predictions
from xpt.evaluation.scores import temperatures
from xpt.metrics import reliability, roc_curve

PLOT = 220
"""Side of a plot, CSS pixels."""
PICTURE = 320
"""Side of an example picture, pixels."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .7rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr + tr { border-top: 1px solid #ddd }
.row { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } figcaption { max-width: 20rem }
.note { background: #fff3d6; padding: .5rem 1rem }
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A film to show."""

    key: str
    finding: str
    probability: float
    is_positive: bool
    image_HW: UInt8[np.ndarray, "H W"]
    heat_GG: Float[np.ndarray, "G G"]


def page(
    title: str, scores: dict[str, Any], val: Predictions, test: Predictions, examples: list[Example]
) -> str:
    """The page's HTML."""
    parts = [f"<h1>{html.escape(title)}</h1>", _summary(scores), _table(scores)]
    if scores["undefined"]:
        names = html.escape(", ".join(scores["undefined"]))
        parts.append(f"<p class=note>Undefined, because all known films are alike: {names}.</p>")
    if scores.get("localisation"):
        parts.append(_localisation(scores["localisation"]))
    if scores.get("against"):
        parts.append(_against(scores["against"]))
    parts.append("<h2>ROC</h2><div class=row>" + "".join(_roc(test, c) for c in _defined(scores)) + "</div>")
    tempered = test.probabilities(temperatures(val))
    parts.append(
        "<h2>Calibration</h2><p>Foretold probability (across) and share of positives (up); grey: as it is, "
        "blue: with the temperature fitted on validation.</p><div class=row>"
        + "".join(_calibration(test, tempered, c) for c in _defined(scores))
        + "</div>"
    )
    if examples:
        parts.append("<h2>Films</h2><div class=row>" + "".join(map(_example, examples)) + "</div>")
    return document(title, STYLE, parts)


def _summary(scores: dict[str, Any]) -> str:
    mean = scores["mean"]["auroc"]
    text = (
        f"<p>{scores['films']:,} films of {scores['patients']:,} patients, split {scores['split']}. "
        f"Mean AUROC over {mean['findings']} of {len(scores['findings'])} findings: <b>{span(mean)}</b>. "
        f"Intervals: 95%, from {scores['draws']:,} draws of patients. Thresholds and temperatures "
        "come from validation.</p>"
    )
    if scores["split"] == "val":
        text += (
            "<p class=note>If this is the validation split of its training, the model was chosen on it.</p>"
        )
    return text


def _table(scores: dict[str, Any]) -> str:
    head = ("finding", "films", "positive", "AUROC", "AUPRC", "threshold", "sensitivity", "specificity")
    head += ("calibration error", "tempered", "temperature")
    rows = []
    for name, row in scores["findings"].items():
        cells = [html.escape(name), f"{row['films']:,}", f"{row['positives']:,}"]
        cells += [span(row["auroc"]), span(row["average_precision"])]
        numbers = ("threshold", "sensitivity", "specificity", "calibration_error")
        cells += [number(row[n]) for n in (*numbers, "calibration_error_tempered", "temperature")]
        rows.append(cells)
    return table(head, rows)


def _localisation(found: dict[str, Any]) -> str:
    head = ("finding", "films", "pointing game", "of a blind pointer", "IoU")
    rows = [
        [html.escape(name), str(row["films"]), span(row["hit"]), number(row["area"]), span(row["iou"])]
        for name, row in found.items()
    ]
    return "<h2>Localisation</h2>" + table(head, rows)


def _against(found: dict[str, Any]) -> str:
    rows = {"mean": found["mean"], **found["findings"]}
    return f"<h2>Minus {html.escape(found['run'])}</h2>" + differences("AUROC, difference", rows)


def _defined(scores: dict[str, Any]) -> list[int]:
    return [c for c, name in enumerate(scores["findings"]) if name not in scores["undefined"]]


def _roc(test: Predictions, finding: int) -> str:
    known = test.known(finding)
    curve = roc_curve(test.target_NC[known, finding] > 0.5, test.logit_NC[known, finding])
    return _plot(test.findings[finding], [("#1565c0", 1 - curve.specificity_T, curve.sensitivity_T)])


def _calibration(test: Predictions, tempered_NC: np.ndarray, finding: int) -> str:
    known = test.known(finding)
    positive = test.target_NC[known, finding] > 0.5
    lines = []
    for colour, probability_NC in (("#999", test.probabilities()), ("#1565c0", tempered_NC)):
        probability_N = probability_NC[known, finding]
        if not np.isnan(probability_N).any():
            table = reliability(positive, probability_N, bins=10)
            lines.append((colour, table.predicted_bins, table.observed_bins))
    return _plot(test.findings[finding], lines)


def _plot(title: str, lines: list[tuple[str, np.ndarray, np.ndarray]]) -> str:
    """Curves in the unit square, its diagonal dashed."""
    drawn = f'<path d="M0 {PLOT}L{PLOT} 0" stroke="#bbb" stroke-dasharray="4" fill="none"/>'
    for colour, x, y in lines:
        points = " ".join(f"{PLOT * a:.1f},{PLOT * (1 - b):.1f}" for a, b in zip(x, y, strict=True))
        drawn += f'<polyline points="{points}" stroke="{colour}" stroke-width="2" fill="none"/>'
    return (
        f'<figure><svg width="{PLOT}" height="{PLOT}" style="border:1px solid #888">{drawn}</svg>'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def _example(example: Example) -> str:
    truth = "has it" if example.is_positive else "does not have it"
    said = f"{example.finding}: {example.probability:.2f}; {truth}. Film {example.key}"
    return figure(example.image_HW, example.heat_GG, said)


def figure(image_HW: UInt8[np.ndarray, "H W"], heat_GG: Float[np.ndarray, "G G"], caption: str) -> str:
    """The film, the same under its heat map, and what they show."""
    return (
        f'<figure><img width="{2 * PICTURE}" height="{PICTURE}" src="{jpeg_url(overlay(image_HW, heat_GG))}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def overlay(image_HW: np.ndarray, heat_GG: np.ndarray) -> bytes:
    """JPEG: the film, and beside it the film with the heat in colour."""
    grey = cv2.resize(image_HW, (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
    heat = cv2.resize(heat_GG.astype(np.float32), (PICTURE, PICTURE), interpolation=cv2.INTER_LINEAR)
    heat = np.clip(heat, 0, 1)
    film = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    colour = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    share = 0.6 * heat[..., None]
    ok, encoded = cv2.imencode(
        ".jpg", np.concatenate([film, (film * (1 - share) + colour * share).astype(np.uint8)], 1)
    )
    assert ok
    return encoded.tobytes()
