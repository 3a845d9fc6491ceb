"""From films to studies: which films are one input, and what their report says.

Shape suffixes: N studies.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xpt.data.groups import Groups, grouped
from xpt.data.index import ShardSet, select_rows
from xpt.data.samples import Reported, read_reported
from xpt.report_config import ReportConfig
from xpt.text.normalise import Language, checked_report
from xpt.text.sections import section_of

log = logging.getLogger("xpt")
FRONTAL = ("PA", "AP", "")
"""Views that show a chest from the front; where a source names none, its films were looked at when built."""
_ORDER = (*FRONTAL, "LATERAL", "OBLIQUE")


@dataclass(frozen=True, kw_only=True, eq=False)
class Studies:
    """The studies of a split that are used, in the order of their first films."""

    shards: ShardSet
    groups: Groups
    names: list[str]
    patients: list[str]
    texts: list[dict[Language, str]]
    """What is to be written, by language."""
    row_of: dict[str, int]
    """The study of each film that is looked at, by key."""

    def __len__(self) -> int:
        return len(self.names)

    def with_text(self, language: Language) -> list[int]:
        """Rows of the studies that have a text in the language."""
        return [row for row, texts in enumerate(self.texts) if language in texts]


def read_studies(shards: ShardSet, settings: ReportConfig) -> Studies:
    """The studies of a split that have a text. A film without a study is one by itself.

    Raises ValueError for a study that cannot be used, unless those are left out, and for a language that no
    study has.
    """
    films = read_reported(shards)
    _check_languages(films.reports, films.reports, settings, shards.split)

    def text_of(rows: list[int], where: str) -> dict[Language, str]:
        return _texts([films.reports[row] for row in rows], settings, where)

    used = _used(shards, films, settings, text_of, leave_out=settings.unusable == "leave_out")
    _check_languages([study.texts for study in used], films.reports, settings, shards.split)
    return _studies(shards, films, used)


def read_unreported(shards: ShardSet, settings: ReportConfig) -> Studies | None:
    """All studies of a split that have a frontal film, without their texts; None where there is none."""
    films = read_reported(shards, with_texts=False)
    used = _used(shards, films, settings, lambda rows, where: {}, leave_out=True)
    return _studies(shards, films, used) if used else None


class _Study(NamedTuple):
    rows: list[int]
    """Of its films that are looked at."""
    name: str
    patient: str
    texts: dict[Language, str]


def _used(
    shards: ShardSet,
    films: Reported,
    settings: ReportConfig,
    text_of: Callable[[list[int], str], dict[Language, str]],
    *,
    leave_out: bool,
) -> list[_Study]:
    """`text_of` says what is to be written of a study's films; ValueError where that cannot be said."""
    members: dict[tuple[str, str], list[int]] = {}
    for row, (patient, study, key) in enumerate(zip(films.patients, films.studies, films.keys, strict=True)):
        members.setdefault((patient, study or key), []).append(row)
    used: list[_Study] = []
    reasons: Counter[str] = Counter()
    for (patient, study), rows in members.items():
        rows.sort(key=lambda row: (_ORDER.index(films.views[row]), row))
        where = f"split {shards.split}, study {study} of patient {patient}"
        try:
            if films.views[rows[0]] not in FRONTAL:
                raise ValueError(f"{where}: no frontal film, only {films.views[rows[0]]}.")
            texts = text_of(rows, where)
        except ValueError as error:
            if not leave_out:
                raise ValueError(f"{error} Or set --report.unusable leave_out.") from error
            reasons[str(error).removeprefix(where).split(",")[0]] += 1
            continue
        used.append(_Study(rows[: settings.views], study, patient, texts))
    if reasons:
        said = "; ".join(f"{count}{reason}" for reason, count in reasons.most_common(3))
        log.warning("split %s: %d studies left out (%s)", shards.split, sum(reasons.values()), said)
    return sorted(used, key=lambda study: study.rows)


def _studies(shards: ShardSet, films: Reported, used: list[_Study]) -> Studies:
    # What stands in for a damaged film is one of those that are looked at.
    is_looked_at_N = np.zeros(len(shards), dtype=bool)
    is_looked_at_N[[row for study in used for row in study.rows]] = True
    place_N = np.cumsum(is_looked_at_N) - 1
    looked_at = select_rows(shards, is_looked_at_N)
    return Studies(
        shards=looked_at,
        groups=grouped(looked_at, [place_N[study.rows].tolist() for study in used]),
        names=[study.name for study in used],
        patients=[study.patient for study in used],
        texts=[study.texts for study in used],
        row_of={films.keys[row]: place for place, study in enumerate(used) for row in study.rows},
    )


def _check_languages(
    texts: Sequence[Mapping[Any, str]], reports: list[dict[str, str]], settings: ReportConfig, split: str
) -> None:
    """Raises ValueError where none of the texts is in one of the languages."""
    for language in settings.languages:
        if not any(language in of_one for of_one in texts):
            there = sorted({name for of_one in reports for name in of_one})
            raise ValueError(
                f"language {language}: no study of split {split} has a text in it "
                f"({settings.section}); the shards have reports in: {', '.join(there) or 'no language'}. Set "
                "--languages, or build the shards with a table that has them: xpt-shards build --meta."
            )


def _texts(reports: list[dict[str, str]], settings: ReportConfig, where: str) -> dict[Language, str]:
    """The section in each language, from the first film that has the report."""
    texts: dict[Language, str] = {}
    for language in settings.languages:
        found = next((report[language] for report in reports if language in report), None)
        if found is None:
            continue
        text = section_of(checked_report(found, language, where), settings.section)
        if text:
            texts[language] = text
    if not texts:
        raise ValueError(
            f"{where}: no {settings.section} in {' or '.join(settings.languages)}, got reports in "
            f"{', '.join(sorted({name for report in reports for name in report})) or 'no language'}."
        )
    return texts
