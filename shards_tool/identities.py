"""Who a header names, found again in the reports of its film, without keeping any name.

The scan keeps a keyed hash of each word of a header's names and numbers; the plan hashes the words of
the film's reports with the same key and replaces those that match. Nothing in between could be read.
"""

import re
from collections.abc import Iterable, Iterator

from shards_tool.privacy import pseudonym

IDENTITY_TAGS = (
    *("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName"),
    *("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy"),
    *("PhysiciansOfRecord", "RequestingPhysician", "OperatorsName"),
)
"""DICOM attributes that hold a person's name or a number given to a person (PS3.15 E.1)."""

_WORD = re.compile(r"[\u4e00-\u9fff]+|[^\W_\u4e00-\u9fff]+(?:['’-][^\W_\u4e00-\u9fff]+)*")
_LEAST_LETTERS, _LEAST_HAN, _MOST_HAN = 3, 2, 4
"""Shorter words are within ordinary text too often: a family name of two letters is not found."""
_NO_NAMES = {
    *("anonymous", "anonymised", "anonymized", "unknown", "unnamed", "none", "null", "test", "name"),
    *("patient", "doctor", "prof", "male", "female", "left", "right", "chest", "the", "and", "not"),
}


def identity_hashes(key: bytes, texts: Iterable[str]) -> frozenset[str]:
    """Keyed hashes of the words of a header's names and numbers."""
    return frozenset(_hash(key, word) for text in texts for word in _names(text))


def redact(key: bytes, text: str, hashes: frozenset[str]) -> tuple[str, int]:
    """The text with [name] in place of each word whose hash is among `hashes`, and how many there were.

    Latin words count where they begin with a capital or a digit, in whatever case they stand in the header.
    """
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        word = match.group()
        if "\u4e00" <= word[0] <= "\u9fff":
            word, found = _redact_han(key, word, hashes)
            count += found
            return word
        if word[0].islower() or not any(_hash(key, part) in hashes for part in _parts(word)):
            return word
        count += 1
        return "[name]"

    return _WORD.sub(replace, text) if hashes else text, count


def _redact_han(key: bytes, run: str, hashes: frozenset[str]) -> tuple[str, int]:
    """Chinese has no spaces: any two to four characters may be the name, the longest first."""
    place, kept, count = 0, [], 0
    while place < len(run):
        for length in range(min(_MOST_HAN, len(run) - place), _LEAST_HAN - 1, -1):
            if _hash(key, run[place : place + length]) in hashes:
                kept.append("[name]")
                place, count = place + length, count + 1
                break
        else:
            kept.append(run[place])
            place += 1
    return "".join(kept), count


def _names(text: str) -> Iterator[str]:
    # A name has its parts divided by ^ and its scripts by = (PS3.5 6.2.1.2): 王^小明 is written 王小明.
    for written in text.split("="):
        whole = written.replace("^", "")
        if _LEAST_HAN <= len(whole) <= _MOST_HAN and all("\u4e00" <= letter <= "\u9fff" for letter in whole):
            yield whole
        for word in _WORD.findall(written):
            if "\u4e00" <= word[0] <= "\u9fff":
                if _LEAST_HAN <= len(word) <= _MOST_HAN:
                    yield word
            else:
                yield from (part for part in _parts(word) if part.casefold() not in _NO_NAMES)


def _parts(word: str) -> Iterator[str]:
    """Smith-Jones, Smith and Jones."""
    for part in dict.fromkeys((word, *re.split(r"['’-]", word))):
        if len(part) >= _LEAST_LETTERS:
            yield part


def _hash(key: bytes, word: str) -> str:
    return pseudonym(key, "identity", word.casefold())
