import dataclasses
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards_tool.build import build
from shards_tool.film import FilmRules
from shards_tool.ledger import LeftOut
from shards_tool.output import BUILD_FOLDER
from shards_tool.reading import read_film
from shards_tool.schema import INDEX, INDEX_DTYPE, MANIFEST, SPLITS, validate_record
from shards_tool.settings import BuildSettings
from shards_tool.verify import verify
from tests.shards_tool.archive import (
    FILMS,
    INPUTS,
    SMALL,
    picture,
    quarantine_of,
    records_of,
    tree,
    twelve_bit,
    write_dicom,
    write_key,
)


def decoded(code: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def test_every_input_is_accounted_for(archive: Path, key_file: Path, tmp_path: Path):
    data = tmp_path / "data"
    meta = [archive / "table.csv"]
    summary = build([archive], data, SMALL, meta=meta, key_file=key_file, workers=0)
    assert (summary.inputs, summary.samples, summary.quarantined) == (INPUTS, FILMS, 2)
    assert (summary.duplicates, summary.excluded) == (1, 1)
    assert sum(summary.splits.values()) == FILMS and summary.contours == {"rect": FILMS}
    reasons = quarantine_of(data)
    assert set(reasons) == {"cut.jpg", "dicom/again.dcm", "empty.dcm", "table.csv"}
    original = reasons["dicom/again.dcm"].removeprefix("duplicate of ")
    assert original in records_of(data) and "truncated" in reasons["cut.jpg"]
    assert not (data / BUILD_FOLDER).exists()
    assert verify(data, workers=0).faults == []


def test_records_hold_what_header_and_table_say_and_nothing_else(
    archive: Path, key_file: Path, tmp_path: Path
):
    data = tmp_path / "data"
    build([archive], data, SMALL, meta=[archive / "table.csv"], key_file=key_file, workers=0)
    records = records_of(data).values()
    labelled = {len(record["labels"]): record for record in records if record["labels"]}
    a, b = labelled[3], labelled[1]
    assert dict(a["labels"]) == {"Edema": 1, "Effusion": 1, "Nodule": 1} and dict(b["labels"]) == {
        "Nodule": -1
    }
    assert dict(a["reports"]) == {"en": "Clear lungs.", "zh": "双肺清晰。"}
    assert a["patient"] == b["patient"] and a["split"] == b["split"] and a["study"] != b["study"]
    assert (a["age"], a["sex"], b["view"]) == (90, "F", "AP")  # ages above 90 are stored as 90
    dicoms = [record for record in records if record["bits_stored"] == 12]
    assert len(dicoms) == 3 and len({record["patient"] for record in dicoms}) == 2
    assert all((r["age"], r["sex"], r["view"], r["window"]) == (47, "F", "PA", "linear") for r in dicoms)
    written = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    for identity in (b"MRN-0000", b"Doe", b"PATIENT-77", b"1.2.826", b"a.png", bytes(tmp_path)):
        assert identity not in written


def test_index_points_at_the_files_in_the_tar(archive: Path, key_file: Path, tmp_path: Path):
    data = tmp_path / "data"
    build([archive], data, SMALL, key_file=key_file, workers=0)
    seen = 0
    for split in SPLITS:
        index = np.load(data / split / INDEX)
        assert index.dtype == np.dtype(INDEX_DTYPE)
        assert (np.diff(index["shard"].astype(int)) >= 0).all()
        for entry in index:
            content = (data / split / f"shard-{entry['shard']:06d}.tar").read_bytes()
            image, text = (
                content[entry[f"{name}_offset"] :][: entry[f"{name}_size"]] for name in ("image", "json")
            )
            record = validate_record(json.loads(text))
            assert record.key == entry["key"].decode() and record.box == tuple(entry["box"])
            assert decoded(image).shape == (64, 64)
            seen += 1
    assert seen == FILMS


def test_stored_images_look_like_their_source(key_file: Path, tmp_path: Path):
    source = tmp_path / "archive"
    write_dicom(source / "a.dcm", 4095 - twelve_bit(1), PhotometricInterpretation="MONOCHROME1")
    jpeg = BuildSettings(side=96, fractions=(1, 0, 0))
    for settings, tolerance in ((jpeg, 2.5), (dataclasses.replace(jpeg, format="png16"), 0.02)):
        data = tmp_path / settings.format
        build([source], data, settings, key_file=key_file, workers=0)
        (entry,) = np.load(data / "train" / INDEX)
        content = (data / "train" / "shard-000000.tar").read_bytes()
        code = content[entry["image_offset"] :][: entry["image_size"]]
        image = decoded(code).astype(float)
        assert image.shape == (96, 96) and tuple(entry["box"]) == (0, 8, 96, 88)
        expected = read_film((source / "a.dcm").read_bytes(), FilmRules()).pixels_HW / 257
        got = image[:, 8:88] / (257 if settings.format == "png16" else 1)
        assert np.abs(got - expected).mean() < tolerance
        assert np.corrcoef(got.ravel(), twelve_bit(1).ravel())[0, 1] > 0.99


def test_bytes_do_not_depend_on_workers_or_place(archive: Path, key_file: Path, tmp_path: Path):
    trees = []
    for workers in (0, 1, 2):
        data = tmp_path / f"data{workers}"
        build([archive], data, SMALL, meta=[archive / "table.csv"], key_file=key_file, workers=workers)
        trees.append(tree(data))
    assert trees[0] == trees[1] == trees[2]
    moved = tmp_path / "elsewhere"
    archive.rename(moved)
    build([moved], tmp_path / "data3", SMALL, meta=[moved / "table.csv"], key_file=key_file, workers=0)
    assert tree(tmp_path / "data3") == trees[0]


def test_patients_stay_in_their_split_when_others_join(archive: Path, key_file: Path, tmp_path: Path):
    build([archive], tmp_path / "before", SMALL, key_file=key_file, workers=0)
    for seed in range(20, 30):
        cv2.imwrite(str(archive / f"{seed}.png"), picture(seed))
    build([archive], tmp_path / "after", SMALL, key_file=key_file, workers=0)
    before, after = records_of(tmp_path / "before"), records_of(tmp_path / "after")
    assert len(after) == len(before) + 10
    assert all(after[key]["split"] == record["split"] for key, record in before.items())


@pytest.mark.parametrize("place", ["", "archive"])
def test_masks_become_contours_and_films_without_one_are_counted(
    archive: Path, key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
):
    """Masks may mirror the source folder's content, or the folder itself."""
    mask = np.zeros((96, 80), dtype=np.uint8)
    mask[20:60, 10:30] = mask[20:60, 50:70] = 255
    masks = archive / "masks"
    for name in ("a", "dicom/1"):
        (masks / place / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(masks / place / f"{name}.png"), mask)
    settings = dataclasses.replace(SMALL, contour=f"masks:{masks}")
    summary = build([archive], tmp_path / "data", settings, key_file=key_file, workers=0)
    assert summary.contours == {"mask": 2, "rect": FILMS - 2} and summary.inputs == INPUTS
    assert "5 of 7 films have no mask" in caplog.text
    assert json.loads((tmp_path / "data" / MANIFEST).read_bytes())["contours"] == summary.contours
    assert verify(tmp_path / "data", workers=0).faults == []


def test_an_unusable_mask_puts_its_film_into_quarantine(archive: Path, key_file: Path, tmp_path: Path):
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.ones((96, 80), dtype=np.uint8))
    settings = dataclasses.replace(SMALL, contour=f"masks:{tmp_path / 'masks'}")
    build([archive], tmp_path / "data", settings, key_file=key_file, workers=0)
    assert "its mask marks nothing" in quarantine_of(tmp_path / "data")["a.png"]


# Interruption


def test_masks_among_the_films_are_left_out(archive: Path, key_file: Path, tmp_path: Path):
    mask = np.zeros((96, 80), np.uint8)
    mask[20:70, 15:65] = 128
    mask[25:65, 20:40] = 255
    (archive / "masks").mkdir()
    cv2.imwrite(str(archive / "masks" / "film.png"), mask)
    cv2.imwrite(str(archive / "masks" / "empty.png"), np.zeros_like(mask))
    summary = build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    assert (summary.samples, summary.excluded, summary.quarantined) == (FILMS, 2, 3)
    reasons = quarantine_of(tmp_path / "data")
    assert reasons["masks/film.png"] == "a mask or a drawing, no film: it has 3 grey values"
    assert reasons["masks/empty.png"] == "no content: every pixel has the value 0"


def test_a_finished_data_set_is_left_alone(archive: Path, key_file: Path, tmp_path: Path):
    data = tmp_path / "data"
    first = build([archive], data, SMALL, key_file=key_file, workers=0)
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert build([archive], data, SMALL, key_file=key_file, workers=0) == first
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.tar")}.items() <= times.items()
    assert not (data / BUILD_FOLDER).exists()


def test_shards_of_a_single_film_are_fine(archive: Path, key_file: Path, tmp_path: Path):
    lonely = dataclasses.replace(SMALL, shard_size=1)
    build([archive], tmp_path / "data", lonely, key_file=key_file, workers=0)
    assert len(list((tmp_path / "data").glob("*/*.tar"))) == FILMS
    assert verify(tmp_path / "data", workers=0).faults == []


@pytest.mark.parametrize("name", ["table.csv", "cut.jpg", "empty.dcm"])
def test_an_archive_without_films_is_an_error_and_leaves_nothing(
    archive: Path, key_file: Path, tmp_path: Path, name: str
):
    only = tmp_path / "only"
    only.mkdir()
    (archive / name).rename(only / name)
    with pytest.raises(ValueError, match=r"no films found: 1 files|no film could be read"):
        build([only], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    assert not (tmp_path / "data").exists()


def test_wrong_requests_say_what_is_wrong(archive: Path, key_file: Path, tmp_path: Path):
    def attempt(word: str, sources: list[Path], out: Path, **settings) -> None:
        with pytest.raises(ValueError, match=word):
            build(sources, out, BuildSettings(**settings), key_file=key_file, workers=0)

    attempt("no such source", [tmp_path / "none"], tmp_path / "data")
    attempt("no sources", [], tmp_path / "data")
    attempt("is a file", [archive], archive / "a.png")
    attempt("no data set; give an empty", [archive], archive)
    attempt("multiple of 8", [archive], tmp_path / "data", side=100)
    attempt("add up to 1", [archive], tmp_path / "data", fractions=(0.5, 0.1, 0.1))
    attempt("1 to 100", [archive], tmp_path / "data", quality=0)
    attempt("not known", [archive], tmp_path / "data", contour="oval")
    assert not (tmp_path / "data").exists()


def test_the_output_folder_and_its_key_may_lie_inside_the_source(archive: Path):
    data = archive / "data"
    first = build([archive], data, SMALL, workers=0)
    assert build([archive], data, SMALL, workers=0) == first and first.inputs == INPUTS


def test_rows_that_name_no_film_are_counted(
    archive: Path, key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    build([archive], tmp_path / "data", SMALL, meta=[archive / "table.csv"], key_file=key_file, workers=0)
    assert "1 of 3 rows of the tables name no film" in caplog.text


def test_tables_are_matched_by_name_only_where_it_is_unique(archive: Path, key_file: Path, tmp_path: Path):
    elsewhere = tmp_path / "tables"
    elsewhere.mkdir()
    (archive / "sub").mkdir()
    cv2.imwrite(str(archive / "sub" / "a.png"), picture(60))
    table = elsewhere / "t.csv"
    table.write_text("file,label:One\na.png,1\nold/place/b.png,1\ndicom/0.dcm,1\n")
    build([archive], tmp_path / "data", SMALL, meta=[table], key_file=key_file, workers=0)
    labelled = [r for r in records_of(tmp_path / "data").values() if r["labels"]]
    # a.png is found by its path, b.png by its name; sub/a.png must not get a.png's row.
    assert len(labelled) == 3


# Real films


@pytest.mark.realdata
def test_all_real_films_end_in_a_shard_or_in_quarantine_with_a_reason(cxr: Path, tmp_path: Path):
    settings = BuildSettings(side=256, shard_size=48, contour=f"masks:{cxr / 'masks'}")
    sources, data = [cxr / "images", cxr / "dicom"], tmp_path / "data"
    key_file = write_key(tmp_path / "key")
    summary = build(sources, data, settings, meta=[cxr / "labels.csv"], key_file=key_file, workers=2)
    assert summary.inputs == 152 + 12 + 1
    # A table, 3 lateral films, 7 encodings of a hip; and one film twice, once as a wrongly tagged negative.
    assert (summary.samples, summary.excluded, summary.quarantined) == (153, 11, 0)
    assert summary.duplicates == 1 and summary.contours == {"mask": 60, "rect": 93}
    assert verify(data, workers=2).faults == []
    records = records_of(data).values()
    assert sum(bool(record["labels"]) for record in records) > 100
    assert {record["window"] for record in records} == {"full", "linear"}
    patients = {split: {r["patient"] for r in records if r["split"] == split} for split in SPLITS}
    assert not patients["train"] & patients["val"] and not patients["train"] & patients["test"]


def test_left_out_lines_keep_odd_names(tmp_path: Path):
    from shards_tool.tables import write_quarantine

    name = os.fsdecode(b"r\xf6ntgen.png")
    left_out = LeftOut(source=0, path=name, reason="x", transfer_syntax="")
    assert write_quarantine([left_out], tmp_path) == {"quarantine": 1}
    assert quarantine_of(tmp_path) == {"r\\xf6ntgen.png": "x"}
