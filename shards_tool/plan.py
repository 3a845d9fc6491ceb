"""Scan and plan: which films there are, what is said about them, and which shards they make.

All of it follows from the content of the input, the settings and the key alone; so neither the number
of workers, nor the order in which they end, nor a kill in between can be seen in the result.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shards_tool.archives import JOINT
from shards_tool.identities import redact
from shards_tool.ledger import Ledger
from shards_tool.ledger_rows import LeftOut, Planned
from shards_tool.metadata import MetaRow, read_table
from shards_tool.privacy import OLDEST_AGE, pseudonym
from shards_tool.progress import progress_bar
from shards_tool.published import clean_split
from shards_tool.scan import Scanned, Scanner
from shards_tool.schema import KEY_LENGTH, SPLITS
from shards_tool.scrub import scrub
from shards_tool.settings import BuildSettings, BuildStoppedError
from shards_tool.shard import ShardTask, Stored, record_of
from shards_tool.sources import Found, Root
from shards_tool.views import NOT_FRONTAL
from shards_tool.workers import Died, run_tasks

log = logging.getLogger(__name__)

_SCAN_BATCH = 32


def scan_inputs(ledger: Ledger, found: Iterable[Found], scanner: Scanner, workers: int) -> None:
    """Bring the ledger's inputs up to date with the files that are there."""
    ledger.forget_seen()
    fresh = (file for file in found if not ledger.is_known(file, scanner.mask_sha256(file)))
    batches = iter(lambda: list(itertools.islice(fresh, _SCAN_BATCH)), [])
    with progress_bar("scan  ", total=None, unit="files") as bar:
        for batch, result in run_tasks(scanner, batches, workers=workers, on_step=bar.advance):
            if isinstance(result, Died):
                raise BuildStoppedError(
                    f"a worker died scanning {result.item} (exit code {result.exit_code})"
                )
            assert len(result) == len(batch)
            ledger.add_inputs(result)
    ledger.forget_unseen()


def share_of(found: Found, count: int) -> int:
    """Which of `count` parts of a job array reads a file, from 1 on."""
    place = hashlib.sha256(f"{found.source}/".encode() + os.fsencode(found.path)).digest()
    return int.from_bytes(place[:8], "big") % count + 1


def plan_samples(
    ledger: Ledger, meta: Sequence[Path], roots: tuple[Root, ...], key: bytes, settings: BuildSettings
) -> int:
    """List every film with its key, its patient, and what the tables say about it.

    Returns:
        The number of films that the tables put into a split, where that is asked for.

    Raises:
        ValueError: a table cannot be read.
    """
    ledger.meta.clear()
    ledger.clear_plan()
    for number, path in enumerate(meta):
        _load_table(ledger, number, path, key, settings)
    placed = 0
    for scanned in ledger.films():
        planned = _planned(ledger, scanned, roots, key)
        if settings.splits == "published":
            placed += planned.split != ""
            planned = dataclasses.replace(planned, split=planned.split or "train")
        if settings.reports == "scrub" and planned.reports:
            planned = _redacted(planned, key, scanned.identities)
        if settings.views == "frontal" and planned.view in NOT_FRONTAL:
            left_out = LeftOut(
                source=planned.source,
                path=planned.path,
                outcome="excluded",
                reason=f"{planned.view.lower()} view",
                transfer_syntax=planned.transfer_syntax,
            )
            ledger.leave_out(left_out)
        else:
            ledger.add_sample(planned)
    ledger.commit()
    rows, unused = ledger.meta.count()
    if unused:
        log.warning("%d of %d rows of the tables name no film among the sources", unused, rows)
    if settings.splits == "published":
        films = ledger.count_inputs().get("film", 0)
        log.info("the tables put %d of %d films into a split; the others are for training", placed, films)
    return placed


def what_was_found(ledger: Ledger) -> str:
    """The counts and most frequent reasons, for an error message."""
    states = ledger.count_inputs()
    reasons = Counter(line.reason for line in ledger.left_out()).most_common(3)
    counts = f"{sum(states.values())} files, {states.get('ignored', 0)} of them plainly no images"
    return counts + "".join(f"; {count} x {reason}" for reason, count in reasons)


def _load_table(ledger: Ledger, number: int, path: Path, key: bytes, settings: BuildSettings) -> None:
    """Put a table into the ledger, with pseudonyms for its patients and studies, and scrubbed reports."""
    for file, row in read_table(path):
        if settings.reports == "scrub" and row.reports:
            row = _scrubbed(row)
        try:
            split = clean_split(row.split) if settings.splits == "published" else ""
        except ValueError as error:
            raise ValueError(f"--splits published: {path}: {file}: {error}") from error
        hidden = dataclasses.replace(
            row,
            patient=pseudonym(key, "patient", row.patient) if row.patient else "",
            study=pseudonym(key, "study", row.study) if row.study else "",
            split=split,
        )
        ledger.meta.add(number, Path(os.path.normpath(path.resolve().parent / file)), file, hidden)


def _scrubbed(row: MetaRow) -> MetaRow:
    found = {language: scrub(text, (row.patient, row.study)) for language, text in row.reports.items()}
    return dataclasses.replace(
        row,
        reports={language: text for language, (text, _) in found.items()},
        scrubbed=sum(count for _, count in found.values()),
    )


def _redacted(planned: Planned, key: bytes, identities: frozenset[str]) -> Planned:
    """Without the people whom the film's own header names."""
    found = {language: redact(key, text, identities) for language, text in planned.reports.items()}
    return dataclasses.replace(
        planned,
        reports={language: text for language, (text, _) in found.items()},
        scrubbed=planned.scrubbed + sum(count for _, count in found.values()),
    )


def _planned(ledger: Ledger, scanned: Scanned, roots: tuple[Root, ...], key: bytes) -> Planned:
    absolute, path = roots[scanned.found.source].local(scanned.found.path), scanned.found.path
    row = ledger.meta.about(absolute, path)
    if row == MetaRow() and JOINT in path:  # the table may be older than the archive
        row = ledger.meta.about(absolute, path.rpartition(JOINT)[2])
    # A row may name the film's folder, where a table describes studies; what it says of the film wins.
    row = ledger.meta.about(absolute.parent, f"{absolute.parent.name}/").merged(row)
    # Without a patient, a film is its own patient; so it never shares one with another film by accident.
    patient = row.patient or scanned.patient or pseudonym(key, "patient of file", scanned.digest)
    age = scanned.age if row.age is None else row.age
    return Planned(
        key=scanned.digest[:KEY_LENGTH],
        digest=scanned.digest,
        mask_sha256=scanned.mask_sha256,
        source=scanned.found.source,
        path=scanned.found.path,
        transfer_syntax=scanned.transfer_syntax,
        split=row.split,
        patient=patient,
        study=row.study or scanned.study or pseudonym(key, "study of file", scanned.digest),
        view=row.view or scanned.view,
        sex=row.sex or scanned.sex,
        age=None if age is None else min(age, OLDEST_AGE),
        labels=row.labels,
        reports=row.reports,
        scrubbed=row.scrubbed,
    )


def input_sha256(ledger: Ledger, recorded: dict[str, object]) -> str:
    """Of all that decides a data set: settings, films and what is said about them, files left out."""
    whole = hashlib.sha256(json.dumps([recorded, ledger.count_inputs()], sort_keys=True).encode())
    for sample in ledger.samples():
        whole.update(_without_place(sample).encode())
    for twin in ledger.twins():
        whole.update(json.dumps(twin).encode())
    return whole.hexdigest()


def shard_tasks(ledger: Ledger, size: int, recorded: dict[str, object]) -> Iterator[ShardTask]:
    """All shards of the plan, by split and number."""
    for split in SPLITS:
        for number, films in enumerate(ledger.planned_shards(split, size)):
            plan = hashlib.sha256(json.dumps(recorded, sort_keys=True).encode())
            samples = []
            for planned, made in films:
                plan.update(_without_place(planned).encode())
                record = record_of(planned, made.facts)
                samples.append(Stored(record=record, file=made.pack, image=made.image, contour=made.contour))
            yield ShardTask(split=split, number=number, plan=plan.hexdigest(), samples=samples)


def _without_place(sample: Planned) -> str:
    """The sample as JSON; the place of its file does not decide anything."""
    return json.dumps(dataclasses.asdict(sample) | {"path": "", "source": 0}, sort_keys=True)
