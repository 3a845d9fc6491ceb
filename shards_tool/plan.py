"""Scan and plan: which sample goes where, settled before a worker starts.

The plan follows from the content of the input, the settings and the key alone; so neither the number
of workers, nor the order in which they end, nor a kill in between can be seen in the result.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards_tool.ledger import Ledger, Planned
from shards_tool.metadata import read_table
from shards_tool.privacy import OLDEST_AGE, pseudonym, split_of
from shards_tool.progress import progress_bar
from shards_tool.scan import Found, Scanned, Scanner
from shards_tool.schema import KEY_LENGTH, SPLITS
from shards_tool.settings import BuildSettings, BuildStoppedError
from shards_tool.shard import ShardTask
from shards_tool.workers import Died, run_tasks

log = logging.getLogger(__name__)

_SCAN_BATCH = 32


def scan_inputs(ledger: Ledger, found: Iterator[Found], scanner: Scanner, workers: int) -> None:
    """Bring the ledger's inputs up to date with the files that are there."""
    ledger.forget_seen()
    # What a mask says may have changed while its film has not.
    fresh = (file for file in found if scanner.masks is not None or not ledger.is_known(file))
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


def plan_samples(
    ledger: Ledger, settings: BuildSettings, meta: Sequence[Path], roots: tuple[Path, ...], key: bytes
) -> None:
    """Decide every sample: its key, patient, split, and what the tables say about it.

    Raises:
        ValueError: a table cannot be read, or there are no films.
    """
    ledger.clear_meta()
    ledger.clear_plan()
    for path in meta:
        _load_table(ledger, path, key)
    for scanned in ledger.films():
        ledger.add_sample(_planned(ledger, scanned, settings, roots, key))
    ledger.commit()
    rows, unused = ledger.count_meta()
    if unused:
        log.warning("%d of %d rows of the tables name no film among the sources", unused, rows)
    if ledger.count_samples() == 0:
        raise ValueError(f"no films found: {what_was_found(ledger)}")


def what_was_found(ledger: Ledger) -> str:
    """The counts and most frequent reasons, for an error message."""
    states = ledger.count_inputs()
    reasons = Counter(line.reason for line in ledger.left_out()).most_common(3)
    counts = f"{sum(states.values())} files, {states.get('ignored', 0)} of them plainly no images"
    return counts + "".join(f"; {count} x {reason}" for reason, count in reasons)


def _load_table(ledger: Ledger, path: Path, key: bytes) -> None:
    """Put a table into the ledger, with pseudonyms for its patients and studies."""
    for file, row in read_table(path):
        hidden = dataclasses.replace(
            row,
            patient=pseudonym(key, "patient", row.patient) if row.patient else "",
            study=pseudonym(key, "study", row.study) if row.study else "",
        )
        ledger.add_meta(Path(os.path.normpath(path.resolve().parent / file)), file, hidden)


def _planned(
    ledger: Ledger, scanned: Scanned, settings: BuildSettings, roots: tuple[Path, ...], key: bytes
) -> Planned:
    row = ledger.meta_of(roots[scanned.found.source] / scanned.found.path, scanned.found.path)
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
        split=split_of(key, settings.salt, patient, settings.fractions),
        patient=patient,
        study=row.study or scanned.study or pseudonym(key, "study of file", scanned.digest),
        view=row.view or scanned.view,
        sex=row.sex or scanned.sex,
        age=None if age is None else min(age, OLDEST_AGE),
        labels=row.labels,
        reports=row.reports,
    )


def shard_tasks(ledger: Ledger, settings: BuildSettings, recorded: dict[str, object]) -> Iterator[ShardTask]:
    """All shards of the plan, by split and number."""
    for split in SPLITS:
        for number, samples in enumerate(ledger.planned_shards(split, settings.shard_size)):
            yield ShardTask(
                split=split, number=number, plan=_shard_sha256(samples, recorded), samples=samples
            )


def _shard_sha256(samples: list[Planned], recorded: dict[str, object]) -> str:
    """Of all that decides a shard; the place of the sources does not."""
    rows = [dataclasses.asdict(sample) | {"path": "", "source": 0} for sample in samples]
    return hashlib.sha256(json.dumps([recorded, rows], sort_keys=True).encode()).hexdigest()


def plan_sha256(ledger: Ledger, settings: BuildSettings, recorded: dict[str, object]) -> str:
    """Of the whole plan: the shards, and how many files are left out of them."""
    whole = hashlib.sha256(json.dumps(ledger.count_inputs(), sort_keys=True).encode())
    for task in shard_tasks(ledger, settings, recorded):
        whole.update(task.plan.encode())
    return whole.hexdigest()
