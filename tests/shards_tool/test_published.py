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


def test_films_go_where_the_tables_put_them_and_the_others_are_drawn(tmp_path: Path):
    films(tmp_path, "a", "b", "c", "d", "e")
    wishes = {"a": ("1", "train"), "b": ("2", "Validate"), "c": ("3", "TEST"), "e": ("1", "")}
    meta = table(tmp_path / "splits.csv", **wishes)
    assert built(tmp_path, meta) == {"a": "train", "b": "val", "c": "test", "d": "test", "e": "train"}
    drawn = built(tmp_path, meta, "drawn", splits="drawn")
    assert set(drawn.values()) == {"test"}


def test_a_patient_in_two_splits_stays_in_the_stricter_one(tmp_path: Path):
    films(tmp_path, "a", "b", "c", "d", "e")
    wishes = {"a": ("1", "train"), "b": ("1", "test"), "c": ("2", "val"), "d": ("2", "train"), "e": ("1", "")}
    split_of = built(tmp_path, table(tmp_path / "splits.csv", **wishes))
    assert split_of == {"b": "test", "c": "val", "e": "test"}
    reasons = quarantine_of(tmp_path / "data")
    why = "in train by the tables, but its patient, or one who shares a picture with them, is in "
    assert reasons["a.png"] == why + "test" and reasons["d.png"] == why + "val"


@pytest.mark.parametrize("duplicates", ["link", "drop", "keep"])
@pytest.mark.parametrize("png_compression", [1, 9])
def test_a_picture_in_train_and_test_is_in_test(tmp_path: Path, duplicates: str, png_compression: int):
    """Whichever of the copies, of the same bytes or not, is kept; other training films of that patient leave,
    for they are one person."""
    wishes = {"free": ("free", "train")}
    saved(tmp_path / "archive" / "free.png", textured(100))
    for i in range(6):
        for name, seed, patient, split in (
            ("film", i, "one", "train"),
            ("more", 50 + i, "one", "train"),
            ("same", i, "other", "test"),
        ):
            options = (cv2.IMWRITE_PNG_COMPRESSION, png_compression if name == "same" else 1)
            saved(tmp_path / "archive" / f"{name}{i}.png", textured(seed), *options)
            wishes[f"{name}{i}"] = f"{patient} {i}", split
    split_of = built(tmp_path, table(tmp_path / "splits.csv", **wishes), duplicates=duplicates)
    assert split_of.pop("free") == "train"
    assert {int(name[-1]) for name in split_of} == set(range(6))
    assert set(split_of.values()) == {"test"} and not any(name.startswith("more") for name in split_of)


def test_train_val_is_divided_and_never_reaches_test(tmp_path: Path):
    films(tmp_path, *(f"f{i}" for i in range(24)))
    wishes = {f"f{i}": (str(i), "test" if i < 4 else "train_val") for i in range(23)}
    split_of = built(tmp_path, table(tmp_path / "splits.csv", **wishes), fractions=(0.3, 0.3, 0.4))
    assert {name for name, split in split_of.items() if split == "test"} - {"f23"} == {
        f"f{i}" for i in range(4)
    }
    counts = [list(split_of.values()).count(split) for split in SPLITS[:2]]
    assert min(counts) >= 4 and sum(counts) >= 19
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
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["settings"]["splits"] == "drawn"
    table(meta, **dict.fromkeys(names, ("x", "train")))
    with pytest.raises(ValueError, match="finished data set of other input"):
        build([tmp_path / "archive"], tmp_path / "whole", PUBLISHED, **asked)


def test_what_names_no_split_is_refused(tmp_path: Path):
    films(tmp_path, "a")
    with pytest.raises(ValueError, match="no table of --meta names a split"):
        built(tmp_path, table(tmp_path / "splits.csv", a=("1", "")))
    with pytest.raises(ValueError, match=r"a\.png: split is 'fold 3'; wanted train, val, test or train_val"):
        built(tmp_path, table(tmp_path / "splits.csv", a=("1", "fold 3")))
    assert built(tmp_path, tmp_path / "splits.csv", splits="drawn") == {
        "a": "test"
    }  # not asked for, no matter
    with pytest.raises(ValueError, match="--splits other: wanted drawn or published"):
        dataclasses.replace(PUBLISHED, splits="other")


def test_lists_of_nih_and_splits_of_mimic(tmp_path: Path):
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n")
    (tmp_path / "test_list.txt").write_text("00000003_000.png\r\n\n")
    (tmp_path / "mimic-cxr-2.0.0-split.csv").write_text(
        "dicom_id,study_id,subject_id,split\nd,5,7,validate\n"
    )

    def splits(name: str) -> dict[str, str]:
        return {file: clean_split(row.split) for file, row in read_table(tmp_path / name)}

    assert splits("train_val_list.txt") == {"00000001_000.png": "train_val", "00000001_001.png": "train_val"}
    assert splits("test_list.txt") == {"00000003_000.png": "test"}
    assert splits("mimic-cxr-2.0.0-split.csv") == {"d.jpg": "val", "d.dcm": "val"}
    (tmp_path / "other.txt").write_text("a.png\n")
    with pytest.raises(ValueError, match=r"or NIH's train_val_list\.txt or test_list\.txt"):
        list(read_table(tmp_path / "other.txt"))
