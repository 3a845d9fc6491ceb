import dataclasses
import json
import random
from pathlib import Path

import cv2
import pytest

from shards_tool.build import build, build_part
from shards_tool.metadata import read_table
from shards_tool.published import clean_split, without_test
from shards_tool.schema import SPLITS
from shards_tool.split import split_again
from shards_tool.verify import verify
from tests.shards_tool.archive import SMALL, quarantine_of, records_of, textured, tree, write_key
from tests.shards_tool.test_settle import saved

PUBLISHED = dataclasses.replace(SMALL, side=128, splits="published", fractions=(0, 0, 1))


def table(path: Path, **wishes: tuple[str, str]) -> Path:
    """A row `NAME.png,PATIENT,SPLIT` for each film."""
    rows = "".join(f"{name}.png,{patient},{split}\n" for name, (patient, split) in wishes.items())
    path.write_text(f"file,patient,split\n{rows}")
    return path


def built(tmp_path: Path, meta: Path, name: str = "data", **changes) -> dict[str, str]:
    """The split of each film, told by its only label: its name."""
    settings = dataclasses.replace(PUBLISHED, **changes)
    labels = tmp_path / "labels.csv"
    films = sorted((tmp_path / "archive").glob("*.png"))
    labels.write_text("file,labels\n" + "".join(f"{film.name},{film.stem}\n" for film in films))
    data, key = tmp_path / name, write_key(tmp_path / "key")
    build([tmp_path / "archive"], data, settings, meta=[labels, meta], key_file=key, workers=0)
    assert verify(data, workers=0).faults == []
    return {dict(row["labels"]).popitem()[0]: row["split"] for row in records_of(data).values()}


def films(tmp_path: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        saved(tmp_path / "archive" / f"{name}.png", textured(seed))


def test_films_go_where_the_tables_put_them_and_the_others_into_train(tmp_path: Path):
    films(tmp_path, "a", "b", "c", "d", "e")
    wishes = {"a": ("1", "train"), "b": ("2", "Validate"), "c": ("3", "TEST"), "e": ("1", "")}
    meta = table(tmp_path / "splits.csv", **wishes)
    assert built(tmp_path, meta) == {"a": "train", "b": "val", "c": "test", "d": "train", "e": "train"}
    drawn = built(tmp_path, meta, "drawn", splits="drawn")
    assert set(drawn.values()) == {"test"}


def test_a_patient_in_two_splits_stays_in_the_stricter_one(tmp_path: Path):
    films(tmp_path, "a", "b", "c", "d", "e")
    wishes = {"a": ("1", "train"), "b": ("1", "test"), "c": ("2", "val"), "d": ("2", "train"), "e": ("1", "")}
    split_of = built(tmp_path, table(tmp_path / "splits.csv", **wishes))
    assert split_of == {"b": "test", "c": "val"}
    reasons = quarantine_of(tmp_path / "data")
    why = "would be in train, but its patient, or one who shares a picture with them, is in {} by the tables"
    assert reasons == {
        **dict.fromkeys(("a.png", "e.png"), why.format("test")),
        "d.png": why.format("val"),
    }


def test_of_two_tables_that_place_a_film_the_stricter_holds(tmp_path: Path):
    films(tmp_path, "a", "b")
    one = table(tmp_path / "one.csv", a=("1", "test"), b=("2", "train"))
    other = table(tmp_path / "other.csv", a=("1", "train"), b=("2", "val"))
    listed = [{"image_path": "a.png", "report": "Clear."}]
    annotation = tmp_path / "annotation.json"
    annotation.write_text(json.dumps({"test": listed, "train": listed}))
    key = write_key(tmp_path / "key")
    for name, meta, splits in (
        ("one first", [one, other], ["test", "val"]),
        ("other first", [other, one], ["test", "val"]),
        ("within one", [annotation], ["test", "train"]),
    ):
        data = tmp_path / name
        build([tmp_path / "archive"], data, PUBLISHED, meta=meta, key_file=key, workers=0)
        assert sorted(row["split"] for row in records_of(data).values()) == splits


@pytest.mark.parametrize("duplicates", ["link", "drop", "keep"])
@pytest.mark.parametrize("png_compression", [1, 9])
def test_a_picture_in_train_and_test_is_in_test(tmp_path: Path, duplicates: str, png_compression: int):
    """As the test film that it is, whether the copies are of the same bytes or not; other training films of
    both patients leave, for they are one person."""
    wishes = {"free": ("free", "train")}
    saved(tmp_path / "archive" / "free.png", textured(100))
    for i in range(6):
        for name, seed, patient, split in (
            ("film", i, "one", "train"),
            ("more", 50 + i, "one", "train"),
            ("same", i, "other", "test"),
            ("theirs", 70 + i, "other", "train"),
        ):
            options = (cv2.IMWRITE_PNG_COMPRESSION, png_compression if name == "same" else 1)
            saved(tmp_path / "archive" / f"{name}{i}.png", textured(seed), *options)
            wishes[f"{name}{i}"] = f"{patient} {i}", split
    split_of = built(tmp_path, table(tmp_path / "splits.csv", **wishes), duplicates=duplicates)
    assert split_of == {"free": "train", **{f"same{i}": "test" for i in range(6)}}


def test_patients_who_share_a_file_are_in_one_split(tmp_path: Path):
    for i in range(6):
        for name, seed in ((f"a{i}", i), (f"b{i}", i), (f"other{i}", 50 + i)):
            saved(tmp_path / "archive" / f"{name}.png", textured(seed))
    patients = {f"{name}{i}": f"{name != 'a'} {i}" for name in ("a", "b", "other") for i in range(6)}
    meta = table(tmp_path / "t.csv", **{name: (patient, "") for name, patient in patients.items()})
    split_of = built(tmp_path, meta, splits="drawn", fractions=(0.4, 0.3, 0.3))
    assert len(split_of) == 12 and len(set(split_of.values())) > 1
    assert all(split_of[f"a{i}"] == split_of[f"other{i}"] for i in range(6))


def test_copies_of_a_film_that_leaves_leave_with_it(tmp_path: Path):
    for name, compression in (("a", 1), ("b", 1), ("c", 9)):
        saved(tmp_path / "archive" / f"{name}.png", textured(0), cv2.IMWRITE_PNG_COMPRESSION, compression)
    saved(tmp_path / "archive" / "test.png", textured(1))
    wishes = {**dict.fromkeys("abc", ("1", "train")), "test": ("1", "test")}
    assert built(tmp_path, table(tmp_path / "splits.csv", **wishes)) == {"test": "test"}
    counts = json.loads((tmp_path / "data" / "manifest.json").read_text())["counts"]
    assert (counts["excluded"], counts["duplicates"]) == (3, 0)


def test_train_val_is_divided_and_never_reaches_test(tmp_path: Path):
    films(tmp_path, *(f"f{i}" for i in range(24)))
    wishes = {f"f{i}": (str(i), "test" if i < 4 else "train_val") for i in range(23)}
    split_of = built(tmp_path, table(tmp_path / "splits.csv", **wishes), fractions=(0.3, 0.3, 0.4))
    assert {name for name, split in split_of.items() if split == "test"} == {f"f{i}" for i in range(4)}
    counts = [list(split_of.values()).count(split) for split in SPLITS[:2]]
    assert min(counts) >= 4 and sum(counts) == 20 and split_of["f23"] == "train"
    assert without_test((0, 0, 1)) == (1, 0, 0) and without_test((0.6, 0.2, 0.2)) == pytest.approx(
        (0.75, 0.25, 0)
    )


def test_parts_make_the_same_and_other_splits_are_another_data_set(tmp_path: Path):
    names = [f"f{i}" for i in range(8)]
    films(tmp_path, *names)
    draw = random.Random(0)
    meta = table(
        tmp_path / "s.csv", **{name: (name, draw.choice(("train", "val", "test"))) for name in names}
    )
    asked = {"meta": [meta], "key_file": write_key(tmp_path / "key"), "workers": 0}
    build([tmp_path / "archive"], tmp_path / "whole", PUBLISHED, **asked)
    for i in (1, 2):
        build_part([tmp_path / "archive"], tmp_path / "parts", PUBLISHED, part=(i, 2), **asked)
    build([tmp_path / "archive"], tmp_path / "parts", PUBLISHED, merge=True, **asked)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    again = split_again(tmp_path / "whole", tmp_path / "again", workers=0)
    assert again.samples == 8
    recorded = [
        json.loads((tmp_path / name / "manifest.json").read_text())["settings"].get("splits")
        for name in ("whole", "again")
    ]
    assert recorded == ["published", None]
    table(meta, **dict.fromkeys(names, ("x", "train")))
    with pytest.raises(ValueError, match="finished data set of other input"):
        build([tmp_path / "archive"], tmp_path / "whole", PUBLISHED, **asked)


def test_what_names_no_split_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    films(tmp_path, "a", "b")
    with pytest.raises(ValueError, match="put none of the films into a split"):
        built(tmp_path, table(tmp_path / "splits.csv", a=("1", "")))
    with pytest.raises(ValueError, match="put none of the films into a split"):
        built(tmp_path, table(tmp_path / "splits.csv", other=("1", "test")))
    with pytest.raises(
        ValueError, match=r"splits\.csv: a\.png: split is 'fold 3'; wanted train, val, test or"
    ):
        built(tmp_path, table(tmp_path / "splits.csv", a=("1", "fold 3")))
    assert built(tmp_path, tmp_path / "splits.csv", "drawn", splits="drawn") == {"a": "test", "b": "test"}
    with caplog.at_level("INFO"):
        built(tmp_path, table(tmp_path / "splits.csv", a=("1", "test")))
    assert "the tables put 1 of 2 films into a split; the others are for training" in caplog.text
    assert "no film is in val: the tables name none" in caplog.text
    with pytest.raises(ValueError, match="--splits other: wanted drawn or published"):
        dataclasses.replace(PUBLISHED, splits="other")


def splits_in(path: Path) -> dict[str, str]:
    return {file: clean_split(row.split) for file, row in read_table(path)}


def test_lists_of_nih(tmp_path: Path):
    (tmp_path / "train_val_list.txt").write_text("00000013_000.png\n00000013_001.png\n")
    (tmp_path / "test_list.txt").write_text("00000003_000.png\r\n\n")
    assert splits_in(tmp_path / "train_val_list.txt") == dict.fromkeys(
        ("00000013_000.png", "00000013_001.png"), "train_val"
    )
    assert splits_in(tmp_path / "test_list.txt") == {"00000003_000.png": "test"}
    (tmp_path / "Data_Entry_2017.csv").write_text(
        "Image Index,Finding Labels,Patient ID\n00000013_000.png,Mass,13\n"
    )
    patients = [
        row.patient
        for name in ("train_val_list.txt", "Data_Entry_2017.csv")
        for _, row in read_table(tmp_path / name)
    ]
    assert patients == ["13"] * 3  # the lists alone keep a patient's films together
    (tmp_path / "other.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match=r"or NIH's train_val_list\.txt or test_list\.txt"):
        list(read_table(tmp_path / "other.txt"))


def test_splits_of_other_public_data_sets(tmp_path: Path):
    (tmp_path / "mimic-cxr-2.0.0-split.csv").write_text(
        "dicom_id,study_id,subject_id,split\nd,5,7,validate\n"
    )
    assert splits_in(tmp_path / "mimic-cxr-2.0.0-split.csv") == {"d.jpg": "val", "d.dcm": "val"}
    path = tmp_path / "groundtruth.csv"  # CheXpert's test set
    path.write_text(
        "Path,Enlarged Cardiomediastinum,Edema\ntest/patient64741/study1/view2_lateral.jpg,0.0,1.0\n"
    )
    ((file, row),) = read_table(path)
    assert (file, row.patient, row.view, row.split) == (
        "test/patient64741/study1/view2_lateral.jpg",
        "patient64741",
        "LATERAL",
        "test",
    )
    assert row.labels == {"Enlarged Cardiomediastinum": 0, "Edema": 1}
    (tmp_path / "rsna.csv").write_text("patientId,Target,split\np1,1,test\n")
    assert splits_in(tmp_path / "rsna.csv") == {"p1.dcm": "test"}


def test_tables_at_different_places_all_speak_of_a_film(tmp_path: Path):
    """MIMIC-CXR's own tables name films without their folders, R2Gen's with them."""
    root, reports = tmp_path / "mimic", {}
    for i in range(4):
        saved(root / "files" / "p10" / f"p{i // 2}" / f"d{i}.jpg", textured(i))
        reports[i] = {
            "subject_id": i // 2,
            "study_id": i,
            "image_path": [f"p10/p{i // 2}/d{i}.jpg"],
            "report": "Clear.",
        }
    rows = "".join(f"d{i},{i},{i // 2},{'test' if i < 2 else 'train'}\n" for i in range(4))
    (root / "split.csv").write_text(f"dicom_id,study_id,subject_id,split\n{rows}")
    (root / "annotation.json").write_text(json.dumps(list(reports.values())))
    meta = [root / "split.csv", root / "annotation.json"]
    build([root], tmp_path / "data", PUBLISHED, meta=meta, key_file=write_key(tmp_path / "key"), workers=0)
    rows = records_of(tmp_path / "data").values()
    assert sorted(row["split"] for row in rows) == ["test", "test", "train", "train"]
    assert all(dict(row["reports"]) == {"en": "Clear."} for row in rows)
    assert len({(row["patient"], row["split"]) for row in rows}) == 2
