"""Writes a hospital archive of phantoms: DICOM files, metadata, reports, masks and the truth about them."""

import csv
import io
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards_tool.files import remove_temporary_files, write_whole
from shards_tool.phantom.dicom import encode_dicom
from shards_tool.phantom.findings import LABELS, NO_FINDING
from shards_tool.phantom.render import Film, render_film
from shards_tool.phantom.report import LANGUAGES, write_report
from shards_tool.phantom.study import Study, plan_patient
from shards_tool.progress import progress_bar
from shards_tool.workers import Died, Step, run_tasks

ARCHIVE_VERSION = 1
METADATA, TRUTH, SETTINGS = "metadata.csv", "truth.jsonl", "phantom.json"
_JOURNAL = "truth.partial.jsonl"
_SIDE_NAME = {-1: "right", 0: "both", 1: "left"}


@dataclass(frozen=True, kw_only=True)
class Summary:
    patients: int
    films: int
    written: int
    kept: int
    """Films that an earlier run had already finished."""
    labels: dict[str, int]
    """Number of films with each label."""


def write_archive(out: Path, *, patients: int, seed: int, side: int = 1440, workers: int = 1) -> Summary:
    """Writes (or completes) an archive of `patients` synthetic patients with one to four films each.

    ::

        OUT/dicom/PATIENT/STUDY/IM0001.dcm     12-bit CR and DX files
        OUT/masks/dicom/.../IM0001.png         0 outside, 128 chest, 255 lung, of the image's size
        OUT/metadata.csv                       file, patient, study, view, sex, age, reports, label:NAME
        OUT/truth.jsonl                        per film: findings with boxes, outlines, body and pose

    The same seed and side give the same bytes for any number of workers (with the same libraries on the
    same kind of processor), and patient i is the same in an archive of any size. Finished films are kept,
    so a killed run goes on with the same call, and a larger `patients` extends an archive.

    Args:
        side: typical longest side in pixels; films vary by a tenth around it.
        workers: processes; 1 stays in this one.

    Raises:
        ValueError: an argument out of range, or `out` holds an archive of another seed, side or version.
        OSError: the disk is full or `out` cannot be written; nothing half-written has a final name.
    """
    for name, value, least in (
        ("patients", patients, 1),
        ("seed", seed, 0),
        ("side", side, 64),
        ("workers", workers, 1),
    ):
        if value < least:
            raise ValueError(f"phantom archive: {name} is {value}, wanted at least {least}")
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out, patients=patients, seed=seed, side=side)
    studies = [study for number in range(patients) for study in plan_patient(seed, number, side=side)]
    truth = {file: row for file, row in _finished(out).items() if _is_complete(out, row)}
    todo = [study for study in studies if study.file not in truth]
    kept = len(studies) - len(todo)
    made = run_tasks(partial(_work, out), todo, workers=workers if workers > 1 else 0)
    with (
        (out / _JOURNAL).open("a", encoding="utf-8") as journal,
        progress_bar("phantom films", total=len(studies)) as bar,
    ):
        bar.advance(kept)
        # A line that a killed run tore must not swallow the next one.
        journal.write("\n")
        for study, row in made:
            if isinstance(row, Died):
                raise ChildProcessError(
                    f"phantom archive: a worker died at {study.file} (exit code {row.exit_code}), as it does "
                    "where memory runs out; the same command with fewer workers goes on"
                )
            truth[row["file"]] = row
            journal.write(_json(row) + "\n")
            journal.flush()
            bar.advance()
    write_whole(out / METADATA, _metadata(studies).encode())
    write_whole(out / TRUTH, "".join(_json(truth[s.file]) + "\n" for s in studies).encode())
    (out / _JOURNAL).unlink()
    counts = {label: sum(label in labels_of(s) for s in studies) for label in LABELS}
    return Summary(patients=patients, films=len(studies), written=len(todo), kept=kept, labels=counts)


def labels_of(study: Study) -> tuple[str, ...]:
    return tuple(f.name for f in study.spec.findings) or (NO_FINDING,)


def _check_settings(out: Path, *, patients: int, seed: int, side: int) -> None:
    path = out / SETTINGS
    wanted = {"version": ARCHIVE_VERSION, "seed": seed, "side": side}
    if not path.exists():
        if any(out.iterdir()):
            raise ValueError(
                f"phantom archive: {out} is not empty and holds no {SETTINGS}; wanted a new or empty folder, "
                "or one that this command has begun"
            )
        write_whole(path, (_json(wanted | {"patients": patients}) + "\n").encode())
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(
                f"phantom archive: {out} was made with {name} {found.get(name)}, got {value}; "
                "use the same value or another folder"
            )
    if found["patients"] > patients:
        raise ValueError(
            f"phantom archive: {out} holds {found['patients']} patients, got {patients}; "
            "an archive can grow, not shrink: use another folder"
        )
    write_whole(path, (_json(wanted | {"patients": patients}) + "\n").encode())


def _finished(out: Path) -> dict[str, dict[str, Any]]:
    """Truth rows of earlier runs by file; a last line torn by a kill is dropped."""
    rows = {}
    for path in (out / TRUTH, out / _JOURNAL):
        if not path.exists():
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows[row["file"]] = row
    return rows


def _is_complete(out: Path, row: dict[str, Any]) -> bool:
    for path, size in ((out / row["file"], row["dicom_bytes"]), (out / row["mask"], row["mask_bytes"])):
        if not path.exists() or path.stat().st_size != size:
            return False
    return True


def _work(out: Path, study: Study, step: Step) -> dict[str, Any]:
    step(study.file)
    return make_film(out, study)


def make_film(out: Path, study: Study) -> dict[str, Any]:
    """Renders one study, writes its mask and its DICOM file, and returns its row of `truth.jsonl`."""
    film = render_film(study.spec)
    dicom = encode_dicom(study, film)
    ok, png = cv2.imencode(".png", film.label_mask())
    assert ok
    mask = f"masks/{study.file.removesuffix('.dcm')}.png"
    for name, content in ((mask, png.tobytes()), (study.file, dicom)):
        folder = (out / name).parent
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(folder)  # a killed run may have left some
        write_whole(out / name, content)
    return _truth(study, film) | {"mask": mask, "mask_bytes": len(png), "dicom_bytes": len(dicom)}


def _truth(study: Study, film: Film) -> dict[str, Any]:
    height, width = film.pixels.shape
    findings = [
        {
            "name": drawn.finding.name,
            "side": _SIDE_NAME[drawn.finding.side],
            "zone": drawn.finding.zone,
            "size": drawn.finding.size,
            "box": list(drawn.box),
        }
        for drawn in film.findings
    ]
    return {
        "file": study.file,
        "patient": study.person.patient_id,
        "study": study.accession,
        "height": height,
        "width": width,
        "cardiothoracic_ratio": film.cardiothoracic_ratio,
        "findings": findings,
        "lungs": _polygons(film.lung),
        "chest": _polygons(film.chest),
        "body": asdict(study.spec.body),
        "pose": asdict(study.spec.pose),
        "encoding": asdict(study.encoding),
    }


def _polygons(mask: np.ndarray) -> list[list[list[int]]]:
    """Outlines as lists of [x, y] pixels, from the film's left to its right, within a pixel and a half."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    simple = [cv2.approxPolyDP(outline, 1.5, closed=True)[:, 0].tolist() for outline in outlines]
    return sorted(simple, key=lambda polygon: sum(x for x, _ in polygon) / len(polygon))


def _metadata(studies: list[Study]) -> str:
    columns = ["file", "patient", "study", "view", "sex", "age"]
    columns += [f"report_{language}" for language in LANGUAGES] + [f"label:{label}" for label in LABELS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for study in studies:
        spec = study.spec
        reports = [write_report(spec.findings, study.report_seed, language) for language in LANGUAGES]
        present = labels_of(study)
        who = [study.file, study.person.patient_id, study.accession, spec.pose.view, spec.body.sex, study.age]
        writer.writerow([*who, *reports, *(int(label in present) for label in LABELS)])
    return text.getvalue()


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
