"""How close generated reports are to the radiologist's: by words, by findings, and by variety.

Shape suffixes: N reports, C findings, R bootstrap draws.

Word overlap says little about whether a report is right: most sentences of most reports are normal
ones. So scores by words never stand alone: findings and variety go beside them.
"""

import shutil
from collections import Counter
from dataclasses import dataclass

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from xpt.metrics import Difference, Interval, Statistic, interval, paired_difference
from xpt.text.findings import FINDINGS, asserted_findings
from xpt.text.normalise import Language, normalise
from xpt.text.words import Words

NO_JAVA = "not measured: METEOR needs Java, and no `java` is on the path"
NOT_ENGLISH = "not defined: METEOR's stems and synonyms are English"


@dataclass(frozen=True, kw_only=True)
class WordScores:
    """pycocoevalcap's values, of one reference each. Intervals are by patient."""

    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4 of the whole corpus."""
    rouge_l: Interval
    cider: Interval
    """Document frequencies are those of all references, also in bootstrap samples."""
    meteor: float | str
    """A number, or why there is none."""


def word_scores(
    references: list[str], candidates: list[str], patients: list[str], words: Words, *, meteor: bool
) -> WordScores:
    """Compare each candidate with its reference, both whole.

    Args:
        patients: of each report, for the intervals.
        words: `english_words`, `chinese_characters` or `chinese_words`.
        meteor: whether the words are English; METEOR is measured then, where Java exists.

    Raises:
        ValueError: if the three lists differ in length or are empty, or a reference has no word.
    """
    _check(references, candidates, patients)
    wanted = {i: [" ".join(words(text))] for i, text in enumerate(references)}
    got = {i: [" ".join(words(text))] for i, text in enumerate(candidates)}
    if empty := [i for i, text in wanted.items() if not text[0]]:
        raise ValueError(
            f"scores: reference {empty[0]} (patient {patients[empty[0]]}) has no word: got "
            f"{references[empty[0]]!r}, wanted a report. Leave such studies out."
        )
    bleu, _ = Bleu(4).compute_score(wanted, got, verbose=0)
    _, rouge_N = Rouge().compute_score(wanted, got)
    _, cider_N = Cider().compute_score(wanted, got)
    return WordScores(
        bleu=(float(bleu[0]), float(bleu[1]), float(bleu[2]), float(bleu[3])),
        rouge_l=_mean_interval(np.asarray(rouge_N), patients),
        cider=_mean_interval(np.asarray(cider_N), patients),
        meteor=_meteor(wanted, got) if meteor else NOT_ENGLISH,
    )


def _check(references: list[str], candidates: list[str], patients: list[str]) -> None:
    if not len(references) == len(candidates) == len(patients) or not references:
        raise ValueError(
            f"scores: got {len(references)} references, {len(candidates)} candidates and "
            f"{len(patients)} patients, wanted as many of each, and at least one"
        )


def _mean_interval(score_N: np.ndarray, patients: list[str]) -> Interval:
    return interval(lambda weight_RN: weight_RN @ score_N / weight_RN.sum(1), patients)


def _meteor(wanted: dict[int, list[str]], got: dict[int, list[str]]) -> float | str:
    if shutil.which("java") is None:
        return NO_JAVA
    scorer = Meteor()
    try:
        value, _ = scorer.compute_score(wanted, got)
    finally:
        # Its own clean-up leaves two pipes open.
        for pipe in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            if pipe is not None:
                pipe.close()
    return float(value)


@dataclass(frozen=True, kw_only=True)
class FindingScores:
    """What the rule labeller reads in the candidates beside what it reads in the references, by patient."""

    precision: Interval
    recall: Interval
    f1: Interval


def finding_scores(
    references: list[str], candidates: list[str], patients: list[str], language: Language
) -> dict[str, FindingScores]:
    """By finding, and "micro" over all of them. NaN where nobody has a finding and nobody is given it."""
    _check(references, candidates, patients)
    is_wanted_NC, is_found_NC = (_labels(texts, language) for texts in (references, candidates))
    columns = {name: [i] for i, name in enumerate(FINDINGS)} | {"micro": list(range(len(FINDINGS)))}
    scores = {}
    for name, column in columns.items():
        wanted_NC, found_NC = is_wanted_NC[:, column], is_found_NC[:, column]
        hits_N = (wanted_NC & found_NC).sum(1).astype(np.float64)
        wanted_N, found_N = wanted_NC.sum(1).astype(np.float64), found_NC.sum(1).astype(np.float64)
        scores[name] = FindingScores(
            precision=_ratio_interval(hits_N, found_N, patients),
            recall=_ratio_interval(hits_N, wanted_N, patients),
            f1=_ratio_interval(2 * hits_N, wanted_N + found_N, patients),
        )
    return scores


def finding_f1_difference(
    references: list[str], ours: list[str], theirs: list[str], patients: list[str], language: Language
) -> Difference:
    """Micro F1 of ours minus theirs."""
    _check(references, ours, patients)
    _check(references, theirs, patients)
    wanted_NC = _labels(references, language)

    def f1(candidates: list[str]) -> Statistic:
        found_NC = _labels(candidates, language)
        hits_N = 2.0 * (wanted_NC & found_NC).sum(1)
        all_N = (wanted_NC.sum(1) + found_NC.sum(1)).astype(np.float64)
        return lambda weight_RN: _ratio(weight_RN @ hits_N, weight_RN @ all_N)

    return paired_difference(f1(ours), f1(theirs), patients)


def _labels(texts: list[str], language: Language) -> np.ndarray:
    """[N, C] bool."""
    said = [asserted_findings(text, language) for text in texts]
    return np.array([[name in found for name in FINDINGS] for found in said])


def _ratio_interval(above_N: np.ndarray, below_N: np.ndarray, patients: list[str]) -> Interval:
    return interval(lambda weight_RN: _ratio(weight_RN @ above_N, weight_RN @ below_N), patients)


def _ratio(above_R: np.ndarray, below_R: np.ndarray) -> np.ndarray:
    return np.divide(above_R, below_R, out=np.full(above_R.shape, np.nan), where=below_R > 0)


@dataclass(frozen=True, kw_only=True)
class Variety:
    """A model that writes the same normal report for everybody scores well by words, and shows here."""

    distinct: float
    """Distinct reports as a share of all."""
    most_frequent: float
    """Share of the commonest report."""
    normal: float
    """Share of reports that assert no finding."""


def variety(reports: list[str], language: Language) -> Variety:
    if not reports:
        raise ValueError("variety: got no report, wanted at least one")
    count = Counter(normalise(report) for report in reports)
    return Variety(
        distinct=len(count) / len(reports),
        most_frequent=max(count.values()) / len(reports),
        normal=float(1 - _labels(reports, language).any(1).mean()),
    )
