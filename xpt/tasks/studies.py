"""From films to studies: which films are one input, and what their report says.

Shape suffixes: N studies.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

    def between(self, first: int, last: int) -> "Studies":
        """The studies of rows `first` to `last` - 1, as if the split had no others."""
        films = [list(dict.fromkeys(rows)) for rows in self.groups.rows_NV[first:last].tolist()]
        shards, groups = _looked_at(self.shards, films)
        return Studies(
            shards=shards,
            groups=groups,
            names=self.names[first:last],
            patients=self.patients[first:last],
            texts=self.texts[first:last],
            row_of={key: row - first for key, row in self.row_of.items() if first <= row < last},
        )


def read_studies(shards: ShardSet, settings: ReportConfig) -> Studies:
    """The studies of a split that have a text. A film without a study is one by itself.

    Raises ValueError for a study that cannot be used, unless those are left out, and for a language that no
    study has.
    """
    films = read_reported(shards)
    _check_languages(films.reports, films.reports, settings, shards.split)

    def text_of(rows: list[int], where: str) -> dict[Language, str]:
        return _texts([films.reports[row] for row in rows], settings, where)

    studies = _studies(shards, films, settings, text_of, leave_out=settings.unusable == "leave_out")
    _check_languages(studies.texts, films.reports, settings, shards.split)
    return studies


def read_unreported(shards: ShardSet, settings: ReportConfig) -> Studies:
    """All studies of a split that have a frontal film, without their texts.

    Raises ValueError where none has.
    """
    films = read_reported(shards, with_texts=False)
    return _studies(shards, films, settings, lambda rows, where: {}, leave_out=True)


def _studies(
    shards: ShardSet,
    films: Reported,
    settings: ReportConfig,
    text_of: Callable[[list[int], str], dict[Language, str]],
    *,
    leave_out: bool,
) -> Studies:
    """`text_of` says what is to be written of a study's films; ValueError where that cannot be said."""
    members: dict[tuple[str, str], list[int]] = {}
    for row, (patient, study, key) in enumerate(zip(films.patients, films.studies, films.keys, strict=True)):
        members.setdefault((patient, study or key), []).append(row)
    used: list[tuple[list[int], str, str, dict[Language, str]]] = []
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
        used.append((rows[: settings.views], study, patient, texts))
    if reasons:
        said = "; ".join(f"{count}{reason}" for reason, count in reasons.most_common(3))
        log.warning("split %s: %d studies left out (%s)", shards.split, sum(reasons.values()), said)
    if not used:
        raise ValueError(f"split {shards.split}: none of its {len(members)} studies can be used")
    used.sort(key=lambda study: study[0])
    looked_at, groups = _looked_at(shards, [rows for rows, _, _, _ in used])
    return Studies(
        shards=looked_at,
        groups=groups,
        names=[study for _, study, _, _ in used],
        patients=[patient for _, _, patient, _ in used],
        texts=[texts for _, _, _, texts in used],
        row_of={films.keys[row]: study for study, (rows, _, _, _) in enumerate(used) for row in rows},
    )


def _looked_at(shards: ShardSet, films: list[list[int]]) -> tuple[ShardSet, Groups]:
    """Only the films of these studies, so that what stands in for a damaged film is one of them."""
    is_looked_at_N = np.zeros(len(shards), dtype=bool)
    is_looked_at_N[[row for rows in films for row in rows]] = True
    place_N = np.cumsum(is_looked_at_N) - 1
    looked_at = select_rows(shards, is_looked_at_N)
    return looked_at, grouped(looked_at, [place_N[rows].tolist() for rows in films])


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
