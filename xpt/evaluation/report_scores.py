"""The evaluation of generated reports beside what needs no model, in one table.

Shape suffixes: N reports.
"""

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from xpt.text.normalise import Language
from xpt.text.r2gen import Protocol, as_scored, known_words
from xpt.text.scores import finding_f1_difference, finding_scores, variety, word_scores
from xpt.text.sections import without_headings
from xpt.text.words import Words, chinese_characters, chinese_words, english_words

MODEL, FREQUENT, NEAREST, SHUFFLED = "model", "most frequent report", "nearest neighbour", "image shuffled"
UNITS: dict[Language, dict[str, Words]] = {
    "en": {"words": english_words},
    "zh": {"characters": chinese_characters, "words": chinese_words},
}
"""What BLEU and the others count, by language."""


def most_frequent(reports: list[str]) -> str:
    """The commonest report of the training split; of several, the first in the alphabet."""
    count = Counter(reports)
    return min(count, key=lambda report: (-count[report], report))


def shuffled(candidates: list[str], patients: list[str]) -> list[str]:
    """To each study the report that was written for another patient's.

    Raises ValueError where one patient has more than half of the studies.
    """
    order = np.argsort(np.array(patients), kind="stable")
    step = max(Counter(patients).values())
    if 2 * step > len(patients):
        raise ValueError(
            f"image shuffled: one patient has {step} of {len(patients)} studies; others' reports are too few"
        )
    given = np.empty(len(order), dtype=np.int64)
    given[order] = np.roll(order, step)
    return [candidates[row] for row in given]


def rows_of(
    references: list[str], by_name: dict[str, list[str]], patients: list[str], language: Language
) -> dict[str, Any]:
    """For each set of candidates its scores by words, findings and variety, ready for JSON.

    Words are compared without the reports' headings.
    """
    wanted = [without_headings(text) for text in references]
    rows: dict[str, Any] = {"reference": {"variety": asdict(variety(references, language))}}
    for name, candidates in by_name.items():
        got = [without_headings(text) for text in candidates]
        rows[name] = {
            unit: asdict(word_scores(wanted, got, patients, words, meteor=language == "en"))
            for unit, words in UNITS[language].items()
        }
        found = finding_scores(references, candidates, patients, language)
        rows[name]["findings"] = {finding: asdict(scores) for finding, scores in found.items()}
        rows[name]["variety"] = asdict(variety(candidates, language))
    return rows


def differences(
    references: list[str], by_name: dict[str, list[str]], patients: list[str], language: Language
) -> dict[str, Any]:
    """The model's micro F1 of findings minus each other's, on the same drawn patients."""
    found = {
        name: finding_f1_difference(references, by_name[MODEL], candidates, patients, language)
        for name, candidates in by_name.items()
        if name != MODEL
    }
    return {name: asdict(d.interval) | {"p_value": d.p_value} for name, d in found.items()}


def r2gen_rows(
    references: list[str],
    by_name: dict[str, list[str]],
    patients: list[str],
    all_references: list[str],
    protocol: Protocol,
) -> dict[str, Any]:
    """Scores by words as R2Gen and its successors publish them, of English reports (`xpt/text/r2gen.py`).

    Args:
        all_references: of all splits, the test split among them, as that protocol has it.
    """
    known = known_words(all_references, protocol)

    def scored(reports: list[str]) -> list[str]:
        return [" ".join(as_scored(text, known, protocol)) for text in reports]

    wanted = scored(references)
    return {
        name: asdict(word_scores(wanted, scored(candidates), patients, str.split, meteor=True))
        for name, candidates in by_name.items()
    }
