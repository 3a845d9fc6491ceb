"""The protocol by which R2Gen (arXiv 2010.16056) and its successors score: for comparison only.

Texts are lower-cased and cleaned; words that occur fewer than three times (MIMIC-CXR: ten) in all splits,
the test split among them, become `<unk>` in the reference too; and the reference is cut after 59 (99)
words. All three make scores higher than those of whole references.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN = "<unk>"
_ENUMERATION = re.compile(r"(?:^|(?<=\s))\d\. ")
_REMOVED = re.compile(r"[.,?;*!%^&_+():<=>@\[\]{}\"'/\\]")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    least_count: int
    """Occurrences of a word that is kept."""
    length: int
    """Positions of a sequence; the first is the start token, so one word fewer fits."""


IU_XRAY = Protocol(least_count=3, length=60)
MIMIC_CXR = Protocol(least_count=10, length=100)


def clean(report: str) -> list[str]:
    """Words in R2Gen's cleaning: no enumeration, no punctuation but one " . " after each sentence."""
    text = _ENUMERATION.sub("", re.sub(r"\.{2,}", ".", report.replace("\n", " "))).strip().lower()
    sentences = (_REMOVED.sub("", sentence).split() for sentence in re.split(r"\. ", text))
    return [word for sentence in sentences if sentence for word in (*sentence, ".")]


def known_words(reports: Iterable[str], protocol: Protocol) -> frozenset[str]:
    """The vocabulary, from the reports of all splits."""
    count = Counter(word for report in reports for word in clean(report))
    return frozenset(word for word, times in count.items() if times >= protocol.least_count)


def as_scored(report: str, known: frozenset[str], protocol: Protocol) -> list[str]:
    """The words that enter the metrics, of a reference or a candidate."""
    return [word if word in known else UNKNOWN for word in clean(report)[: protocol.length - 1]]
