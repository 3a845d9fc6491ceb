"""Shards of synthetic patients whose findings are large enough for a small model at few pixels."""

import csv
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from shards_tool.build import build
from shards_tool.phantom.archive import labels_of, make_film
from shards_tool.phantom.findings import CARDIOMEGALY, LABELS, NODULE, Finding, draw_findings
from shards_tool.phantom.report import LANGUAGES, write_report
from shards_tool.phantom.study import Study, plan_patient
from shards_tool.settings import BuildSettings

Row = dict[str, object]
SEED = 23
KEY = "0123456789abcdef" * 4
"""The patients are synthetic: everyone gets the same splits."""


def large_findings_shards(
    work: Path,
    *,
    patients: int,
    side: int,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
) -> Path:
    """One film per patient with both reports, in shards by patient.

    Nodules have 28 to 40 mm, hearts a ratio of 0.64 to 0.70, everything else is from 0.75 to 1 of its range.
    """

    def drawn() -> tuple[list[Study], list[Row]]:
        first = (plan_patient(SEED, number, side=side)[0] for number in range(patients))
        studies = [with_large_findings(study, number) for number, study in enumerate(first)]
        return studies, [_row(study) for study in studies]

    settings = BuildSettings(side=side, shard_size=64, fractions=fractions)
    return shards_of(work / f"archive-{patients}-{side}", drawn, settings)


def shards_of(
    archive: Path, drawn: Callable[[], tuple[list[Study], list[Row]]], settings: BuildSettings
) -> Path:
    """The shards of films that `drawn` plans, with a row of the table for each.

    What is there is not made again.
    """
    shards, key = archive.with_suffix(".shards"), archive.with_suffix(".key")
    table = archive / "metadata.csv"
    if not table.exists():
        studies, rows = drawn()
        make_films(archive, studies)
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if not (shards / "manifest.json").exists():
        key.write_text(KEY)
        build([archive / "dicom"], shards, settings, meta=[table], key_file=key, workers=0)
    return shards


def make_films(archive: Path, studies: Iterable[Study]) -> None:
    """With all cores, in spawned processes, because this one has threads."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(partial(make_film, archive), studies, chunksize=16):
            pass


def with_large_findings(study: Study, number: int) -> Study:
    """The same patient and film with findings of its own: each label leads in one patient of six."""
    rng = np.random.default_rng((SEED, number))
    found = draw_findings(LABELS[number % len(LABELS)], rng)
    found = tuple(_enlarged(finding, rng) for finding in found)
    return dataclasses.replace(study, spec=dataclasses.replace(study.spec, findings=found))


def _enlarged(finding: Finding, rng: np.random.Generator) -> Finding:
    low, high = {NODULE: (28, 40), CARDIOMEGALY: (0.64, 0.70)}.get(finding.name, (0.75, 1))
    return dataclasses.replace(finding, size=float(rng.uniform(low, high)))


def _row(study: Study) -> Row:
    texts = {
        f"report_{name}": write_report(study.spec.findings, study.report_seed, name) for name in LANGUAGES
    }
    labels = {f"label:{name}": int(name in labels_of(study)) for name in LABELS}
    return {
        "file": study.file,
        "patient": study.person.patient_id,
        "study": study.accession,
        "view": study.spec.pose.view,
        **texts,
        **labels,
    }
