"""One HTML page about a model that writes reports: numbers, and studies with their texts.

Everything is in the one file, as in `xpt/evaluation/page.py`.
"""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from xpt.evaluation.html import differences, document, number, span, table
from xpt.evaluation.page import STYLE, figure
from xpt.text.normalise import Language

WORD_SCORES = ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR")
_OWN_STYLE = """
.study { border-top: 2px solid #888; padding: 1rem 0 } .text { max-width: 34rem } mark { background: #ffd54f }
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class WordHeat:
    """Where the model looked for some words of a text."""

    start: int
    """Characters of the text, `end` excluded."""
    end: int
    heat_GG: Float[np.ndarray, "G G"]
    """At most 1, on the study's first film."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    language: Language
    reference: str
    told: str
    heats: list[WordHeat]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportExample:
    """A study to show."""

    name: str
    image_HW: UInt8[np.ndarray, "H W"]
    texts: list[Text]


def report_page(title: str, scores: dict[str, Any], examples: list[ReportExample]) -> str:
    """The page's HTML."""
    parts = [f"<h1>{html.escape(title)}</h1>", _summary(scores)]
    for language, content in scores["languages"].items():
        parts.append(f"<h2>{language}: {content['studies']:,} reports</h2>" + _table(content["rows"]))
        parts.append(differences("finding F1, the model minus", content["model_minus"]))
        parts += [_published(name, content[name]) for name in ("r2gen", "r2gen_mimic") if name in content]
    if examples:
        parts.append(
            "<h2>Studies</h2><p>The first ones of the split, not chosen. Marked words name a finding; the "
            "pictures show where the model looked when it wrote them, in their order.</p>"
        )
        parts += map(_example, examples)
    return document(title, STYLE + _OWN_STYLE, parts)


def _summary(scores: dict[str, Any]) -> str:
    text = (
        f"<p>{scores['studies']:,} studies of {scores['patients']:,} patients, split {scores['split']}; "
        f"text: {scores['section']}; up to {scores['views']} films of a study; loss {scores['loss']:.3f}. "
        f"The model was chosen by {scores['chosen_by']}. Intervals: 95%, from draws of patients. References "
        "are whole; findings are what the rule labeller reads.</p>"
    )
    if scores["split"] == "val":
        text += (
            "<p class=note>If this is the validation split of its training, the model was chosen on it.</p>"
        )
    return text


def _table(rows: dict[str, Any]) -> str:
    head = ("", *WORD_SCORES, "finding precision", "recall", "F1", "distinct", "commonest", "normal")
    lines = []
    for name, row in rows.items():
        varied = [number(row["variety"][n]) for n in ("distinct", "most_frequent", "normal")]
        if "findings" not in row:
            lines.append([name, *[""] * (len(head) - 4), *varied])
            continue
        micro = row["findings"]["micro"]
        found = [number(micro["precision"]["value"]), number(micro["recall"]["value"]), span(micro["f1"])]
        units = [unit for unit in ("words", "characters") if unit in row]
        for unit in units:
            label = name if len(units) == 1 else f"{name}, by {unit}"
            lines.append([html.escape(label), *_words(row[unit]), *found, *varied])
    return table(head, lines)


def _words(row: dict[str, Any]) -> list[str]:
    meteor = row["meteor"]
    said = number(meteor) if isinstance(meteor, float) else html.escape(meteor.split(":")[0])
    bleu = [number(row["bleu"][0]), number(row["bleu"][3])]
    return [*bleu, number(row["rouge_l"]["value"]), number(row["cider"]["value"]), said]


def _published(name: str, rows: dict[str, Any]) -> str:
    lines = [[html.escape(who), *_words(row)] for who, row in rows.items()]
    note = "references cut, rare words unknown: for comparison with published numbers only"
    return f"<p>Protocol {name} ({note}):</p>" + table(("", *WORD_SCORES), lines)


def _example(example: ReportExample) -> str:
    parts = [f"<div class=study><p>Study {html.escape(example.name)}</p><div class=row>"]
    if not any(text.heats for text in example.texts):
        parts.append(figure(example.image_HW, np.zeros((1, 1)), "film"))
    for text in example.texts:
        parts.append(
            f"<div class=text lang={text.language}><p><b>{text.language}, reference.</b> "
            f"{html.escape(text.reference)}</p><p><b>Generated.</b> {_marked(text)}</p><div class=row>"
        )
        for heat in text.heats:
            parts.append(figure(example.image_HW, heat.heat_GG, text.told[heat.start : heat.end][:40]))
        parts.append("</div></div>")
    return "".join(parts) + "</div></div>"


def _marked(text: Text) -> str:
    """The generated text, with the words that are looked up marked."""
    parts, done = [], 0
    for heat in text.heats:
        if heat.start < done or (heat.start, heat.end) == (0, len(text.told)):
            continue
        parts.append(html.escape(text.told[done : heat.start]))
        parts.append(f"<mark>{html.escape(text.told[heat.start : heat.end])}</mark>")
        done = heat.end
    return "".join(parts) + html.escape(text.told[done:])
