"""The phantom archive on disk: DICOM that decodes, tables that agree, bytes that repeat."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from shards_tool.phantom import archive as archive_module
from shards_tool.phantom.archive import labels_of, write_archive
from shards_tool.phantom.dicom import encode_dicom
from shards_tool.phantom.findings import FINDINGS, LABELS, NO_FINDING
from shards_tool.phantom.render import WHITE, Film, render_film
from shards_tool.phantom.study import Encoding, Study, plan_patient

PATIENTS, SEED, SIDE = 7, 11, 224


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "archive"
    write_archive(out, patients=PATIENTS, seed=SEED, side=SIDE)
    return out


@pytest.fixture(scope="module")
def film() -> tuple[Study, Film]:
    study = plan_patient(SEED, 0, side=SIDE)[0]
    return study, render_film(study.spec)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def digests(out: Path) -> dict[str, str]:
    files = (p for p in out.rglob("*") if p.is_file())
    return {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def with_encoding(study: Study, **changes: object) -> Study:
    base = {"modality": "CR", "photometric": "MONOCHROME2", "slope": 1.0, "intercept": 0.0}
    base |= {"voi": "linear", "transfer": "explicit"} | changes
    values = {f: getattr(study, f) for f in study.__dataclass_fields__}
    return Study(**values | {"encoding": Encoding(**base)})  # pyright: ignore[reportArgumentType]


def decode(study: Study, film: Film) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(encode_dicom(study, film)))


def test_the_layout_is_one_file_and_one_mask_per_row(archive):
    rows = rows_of(archive)
    planned = [s for i in range(PATIENTS) for s in plan_patient(SEED, i, side=SIDE)]
    assert [r["file"] for r in rows] == [s.file for s in planned]
    assert len({r["patient"] for r in rows}) == PATIENTS < len(rows)
    on_disk = {p.relative_to(archive).as_posix() for p in archive.rglob("*.dcm")}
    assert on_disk == {r["file"] for r in rows}
    for row in rows:
        _, patient, study, _ = row["file"].split("/")
        assert (patient, study) == (row["patient"], row["study"])
        mask = cv2.imread(str(archive / "masks" / row["file"].replace(".dcm", ".png")), cv2.IMREAD_UNCHANGED)
        header = pydicom.dcmread(archive / row["file"], stop_before_pixels=True)
        assert mask is not None and mask.shape == (header.Rows, header.Columns)
        assert set(np.unique(mask)) == {0, 128, 255}
    assert {p.name for p in archive.iterdir()} == {
        "dicom",
        "masks",
        "metadata.csv",
        "truth.jsonl",
        "phantom.json",
    }


def test_metadata_headers_and_truth_agree(archive):
    truth = [json.loads(line) for line in (archive / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, true in zip(rows_of(archive), truth, strict=True):
        ds = pydicom.dcmread(archive / row["file"], stop_before_pixels=True)
        assert (row["patient"], row["study"]) == (ds.PatientID, ds.AccessionNumber)
        assert (row["view"], row["sex"]) == (ds.ViewPosition, ds.PatientSex)
        assert f"{int(row['age']):03d}Y" == ds.PatientAge
        assert true["file"] == row["file"] and (true["height"], true["width"]) == (ds.Rows, ds.Columns)
        present = {label for label in LABELS if row[f"label:{label}"] == "1"}
        assert present == ({f["name"] for f in true["findings"]} or {NO_FINDING})
        for finding in true["findings"]:
            left, top, right, bottom = finding["box"]
            assert 0 <= left < right <= ds.Columns and 0 <= top < bottom <= ds.Rows
        assert len(true["lungs"]) == 2 and len(true["chest"]) == 1


def test_the_summary_counts_what_is_there(archive, tmp_path):
    summary = write_archive(archive, patients=PATIENTS, seed=SEED, side=SIDE)
    rows = rows_of(archive)
    assert (summary.patients, summary.films, summary.written, summary.kept) == (
        PATIENTS,
        len(rows),
        0,
        len(rows),
    )
    for label in LABELS:
        assert summary.labels[label] == sum(row[f"label:{label}"] == "1" for row in rows)


def test_two_workers_write_the_same_bytes_as_one(archive, tmp_path):
    write_archive(tmp_path / "two", patients=PATIENTS, seed=SEED, side=SIDE, workers=2)
    assert digests(tmp_path / "two") == digests(archive)


def test_another_seed_gives_other_films(tmp_path, archive):
    write_archive(tmp_path / "other", patients=1, seed=SEED + 1, side=SIDE)
    assert not set(digests(tmp_path / "other").values()) & set(digests(archive).values())


def test_an_interrupted_archive_goes_on_and_ends_with_the_same_bytes(archive, tmp_path, monkeypatch):
    out, made = tmp_path / "killed", []
    real = archive_module.make_film

    def fails_at_the_fourth(folder: Path, study: Study):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(study.file)
        return real(folder, study)

    monkeypatch.setattr(archive_module, "make_film", fails_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        write_archive(out, patients=PATIENTS, seed=SEED, side=SIDE)
    assert not (out / "metadata.csv").exists()
    # A kill can also tear the journal's last line and lose a finished file.
    with (out / "truth.partial.jsonl").open("a") as journal:
        journal.write('{"file": "dicom/torn')
    (out / made[1]).unlink()
    monkeypatch.setattr(archive_module, "make_film", real)
    summary = write_archive(out, patients=PATIENTS, seed=SEED, side=SIDE)
    assert summary.kept == 2
    assert digests(out) == digests(archive)


def test_a_run_killed_in_the_middle_goes_on_and_ends_with_the_same_bytes(archive, tmp_path):
    out = tmp_path / "killed"
    call = f"write_archive(Path({str(out)!r}), patients={PATIENTS}, seed={SEED}, side={SIDE}, workers=2)"
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path\nfrom shards_tool.phantom import write_archive\n"
        f"if __name__ == '__main__':\n    {call}\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)}
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(out.rglob("*.dcm"))) < 3:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert not (out / "truth.jsonl").exists()
    write_archive(out, patients=PATIENTS, seed=SEED, side=SIDE)
    assert digests(out) == digests(archive)


def test_an_archive_grows_and_keeps_its_patients(archive, tmp_path):
    out = tmp_path / "grown"
    write_archive(out, patients=2, seed=SEED, side=SIDE)
    stamp = {p: p.stat().st_mtime_ns for p in out.rglob("*.dcm")}
    write_archive(out, patients=PATIENTS, seed=SEED, side=SIDE)
    assert all(p.stat().st_mtime_ns == when for p, when in stamp.items())
    assert digests(out) == digests(archive)


def test_a_folder_of_something_else_or_of_other_settings_is_refused(archive, tmp_path):
    with pytest.raises(ValueError, match=f"made with seed {SEED}, got 12"):
        write_archive(archive, patients=PATIENTS, seed=12, side=SIDE)
    with pytest.raises(ValueError, match="can grow, not shrink"):
        write_archive(archive, patients=PATIENTS - 1, seed=SEED, side=SIDE)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_archive(tmp_path, patients=1, seed=0)
    for bad in ({"patients": 0}, {"seed": -1}, {"side": 10}, {"workers": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            write_archive(tmp_path / "new", **({"patients": 1, "seed": 0} | bad))


@pytest.mark.parametrize("transfer", ["explicit", "rle", "jpeg2000"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_pixels_survive_every_transfer_syntax_and_monochrome1_is_the_inverse(film, transfer, photometric):
    study, drawn = film
    ds = decode(with_encoding(study, transfer=transfer, photometric=photometric), drawn)
    stored = ds.pixel_array
    wanted = WHITE - drawn.pixels if photometric == "MONOCHROME1" else drawn.pixels
    assert np.array_equal(stored, wanted)
    assert (ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (16, 12, 11)
    assert ds.file_meta.TransferSyntaxUID.is_compressed == (transfer != "explicit")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    "voi, slope, intercept",
    [
        ("linear", 1.0, 0.0),
        ("linear", 0.25, -128.0),
        ("sigmoid", 1.0, 0.0),
        ("sigmoid", 2.0, -1024.0),
        ("lut", 1.0, 0.0),
    ],
)
def test_the_window_shows_dark_lungs_and_uses_the_display_range(film, voi, photometric, slope, intercept):
    study, drawn = film
    changes = {"voi": voi, "photometric": photometric, "slope": slope, "intercept": intercept}
    ds = decode(with_encoding(study, **changes), drawn)
    # pydicom applies a VOI LUT to the integers that it is made for.
    values = ds.pixel_array if voi == "lut" else apply_modality_lut(ds.pixel_array, ds)
    shown = apply_voi_lut(values, ds).astype(np.float64)
    if voi == "lut":
        low, high = 0.0, float(WHITE)
    else:
        low, high = intercept, WHITE * slope + intercept  # pydicom's output range for a window
    grey = (shown - low) / (high - low) * 255
    if photometric == "MONOCHROME1":
        grey = 255 - grey
    field = grey[drawn.exposed > 0]
    assert field.min() >= -1 and field.max() <= 256
    assert np.percentile(field, 95) - np.percentile(field, 5) > 100
    # Air beside the neck may be black; the chest may not be clipped.
    chest = grey[drawn.chest > 0]
    assert ((chest < 1) | (chest > 254)).mean() < 0.01
    assert np.median(grey[drawn.lung > 0]) + 40 < np.median(grey[(drawn.chest > 0) & (drawn.lung == 0)])


def test_headers_carry_identities_and_unique_uids(archive):
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(archive.rglob("*.dcm"))]
    assert (
        len({h.SOPInstanceUID for h in headers}) == len({h.StudyInstanceUID for h in headers}) == len(headers)
    )
    for h in headers:
        assert h.SOPInstanceUID.is_valid and h.SOPInstanceUID == h.file_meta.MediaStorageSOPInstanceUID
        for name in ("PatientName", "PatientBirthDate", "PatientAddress", "InstitutionName", "StudyDate"):
            assert str(h[name].value)
    by_patient = {}
    for h in headers:
        by_patient.setdefault(h.PatientID, set()).add((str(h.PatientName), h.PatientBirthDate, h.PatientSex))
    assert all(len(who) == 1 for who in by_patient.values())


def test_many_patients_cover_findings_views_and_encodings():
    studies = [s for i in range(150) for s in plan_patient(0, i, side=1440)]
    labels = Counter(label for s in studies for label in labels_of(s))
    assert all(labels[name] > 0.08 * len(studies) for name in FINDINGS)
    assert 0.2 < labels[NO_FINDING] / len(studies) < 0.5
    for field in ("modality", "photometric", "voi", "transfer", "slope"):
        assert len({getattr(s.encoding, field) for s in studies}) >= 2
    assert {s.spec.pose.view for s in studies} == {"PA", "AP"}
    assert all(1280 <= max(s.spec.pose.height, s.spec.pose.width) <= 1600 for s in studies)
    assert len({s.file for s in studies}) == len(studies)
    assert len({s.encoding.transfer for s in studies}) == 3


def test_the_first_eight_patients_show_every_finding_and_three_are_well():
    for seed in range(5):
        first = [plan_patient(seed, number, side=1440)[0] for number in range(8)]
        assert set(LABELS) == {label for study in first for label in labels_of(study)}
        assert sum(labels_of(study) == (NO_FINDING,) for study in first) == 3


def test_a_patient_does_not_depend_on_the_size_of_the_archive_and_ages_with_time():
    assert plan_patient(4, 9, side=1440) == plan_patient(4, 9, side=1440)
    several = next(p for i in range(50) if len(p := plan_patient(4, i, side=1440)) > 2)
    assert [s.date for s in several] == sorted({s.date for s in several})
    assert [s.age for s in several] == sorted(s.age for s in several)
    assert len({s.spec.body.texture_seed for s in several}) == 1
