import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from shards_tool.build import build
from shards_tool.privacy import pseudonym
from shards_tool.schema import QUARANTINE, SAMPLES
from shards_tool.settings import BuildSettings, BuildSummary
from shards_tool.verify import verify
from tests.shards_tool.archive import SMALL, textured, twelve_bit, write_dicom, write_key

EVEN = dataclasses.replace(SMALL, side=128, fractions=(0.34, 0.33, 0.33))


def saved(path: Path, pixels: np.ndarray, *options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels, options)


def copies(root: Path) -> None:
    """Eight films: four times one picture (twice of the same pixels, twice recompressed), and four others."""
    film = textured(1)
    saved(root / "a.png", film)
    saved(root / "a again.png", film, cv2.IMWRITE_PNG_COMPRESSION, 9)
    saved(root / "a small.png", cv2.resize(film, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    saved(root / "a.jpg", film, cv2.IMWRITE_JPEG_QUALITY, 60)
    for seed in range(2, 6):
        saved(root / f"{seed}.png", textured(seed))


def made(tmp_path: Path, name: str = "data", **changes) -> tuple[Path, BuildSummary]:
    settings = dataclasses.replace(EVEN, **changes.pop("settings", {}))
    key_file = write_key(tmp_path / "key")
    data = tmp_path / name
    summary = build([tmp_path / "archive"], data, settings, key_file=key_file, workers=0, **changes)
    assert verify(data, workers=0).faults == []
    return data, summary


def rows(data: Path) -> list[dict]:
    return pq.read_table(data / SAMPLES).to_pylist()


def left_out(data: Path) -> dict[str, tuple[str, str]]:
    lines = pq.read_table(data / QUARANTINE).to_pylist()
    return {line["path"]: (line["outcome"], line["reason"]) for line in lines}


@pytest.mark.parametrize(("rule", "samples"), [("keep", 8), ("link", 7), ("drop", 5)])
def test_duplicates_are_kept_linked_or_dropped_and_never_in_two_splits(
    tmp_path: Path, rule: str, samples: int
):
    copies(tmp_path / "archive")
    for salt in ("", "a", "b"):
        data, summary = made(tmp_path, f"data{salt}", settings={"duplicates": rule, "salt": salt})
        assert (summary.samples, summary.duplicates, summary.inputs) == (samples, 8 - samples, 8)
        grouped = [row for row in rows(data) if row["duplicate_group"]]
        assert len(grouped) == (0 if rule == "drop" else samples - 4)
        assert len({(row["duplicate_group"], row["split"]) for row in grouped}) <= 1
        assert all(row["duplicate_group"] == min(r["key"] for r in grouped) for row in grouped)
        outcomes = left_out(data)
        assert {outcome for outcome, _ in outcomes.values()} <= {"duplicate"}
        assert all(
            reason.split()[-1] in {row["key"] for row in rows(data)} for _, reason in outcomes.values()
        )


def test_the_same_pixels_in_another_encoding_are_the_same_film(tmp_path: Path):
    for name, syntax in (("a", "1.2.840.10008.1.2.1"), ("b", "1.2.840.10008.1.2.5")):  # plain and RLE
        write_dicom(tmp_path / "archive" / f"{name}.dcm", twelve_bit(3), syntax=syntax)
    data, summary = made(tmp_path)
    assert (summary.samples, summary.duplicates) == (1, 1)
    ((outcome, reason),) = left_out(data).values()
    assert outcome == "duplicate" and reason == f"same pixels as {rows(data)[0]['key']}"


def test_patients_who_share_a_film_stay_together_even_where_it_is_dropped(tmp_path: Path):
    """One person under two numbers: their other films must not be torn apart."""
    archive = tmp_path / "archive"
    for i in range(6):
        write_dicom(archive / f"{i}.dcm", twelve_bit(i), seed=i)
    write_dicom(archive / "shared.dcm", twelve_bit(0), seed=5, StudyDescription="again")
    key = write_key(tmp_path / "key").read_bytes()
    one, other = (pseudonym(key, "patient", f"MRN-{seed:05d}") for seed in (0, 5))
    splits = set()
    for salt in "abcdefgh":
        data, summary = made(tmp_path, salt, settings={"salt": salt})
        assert summary.duplicates == 1
        split_of = {row["patient"]: row["split"] for row in rows(data)}
        assert len(split_of) == 6 and split_of[one] == split_of[other]
        splits.add(split_of[one])
    assert len(splits) > 1


def test_films_of_a_test_set_are_excluded_by_pixels_and_by_look(tmp_path: Path):
    copies(tmp_path / "archive")
    test = tmp_path / "test"
    saved(test / "films" / "a.jpg", textured(1), cv2.IMWRITE_JPEG_QUALITY, 70)
    saved(test / "films" / "2.png", textured(2))
    (tmp_path / "other key").write_text("fedcba9876543210" * 4)
    for key in ("key", "other key"):  # looks need no key
        settings = BuildSettings(side=128, fractions=(0, 0, 1))
        write_key(tmp_path / "key")
        build([test / "films"], test / key, settings, key_file=tmp_path / key, workers=0)
        data, summary = made(tmp_path, f"without {key}", exclude_from=[test / key])
        assert (summary.samples, summary.excluded, summary.duplicates) == (3, 5, 0)
        reasons = left_out(data)
        assert set(reasons) == {"a.png", "a again.png", "a small.png", "a.jpg", "2.png"}
        assert all(outcome == "excluded" and "--exclude-from" in why for outcome, why in reasons.values())


def test_a_list_of_hashes_excludes_as_well(tmp_path: Path):
    copies(tmp_path / "archive")
    data, _ = made(tmp_path, "all")
    one, two = (row for row in rows(data) if not row["duplicate_group"]), tmp_path / "list.txt"
    two.write_text(f"{next(one)['pixel_hash']}\n\n{next(one)['perceptual_hash']}\n")
    _, summary = made(tmp_path, "fewer", exclude_from=[two])
    assert summary.excluded == 2
    two.write_text("not a hash\n")
    with pytest.raises(ValueError, match=r"list.txt, line 1: wanted 64 hexadecimal digits, got 'not a hash'"):
        made(tmp_path, "none", exclude_from=[two])
    with pytest.raises(ValueError, match="no such file or folder"):
        made(tmp_path, "none", exclude_from=[tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no data set of this program"):
        made(tmp_path, "none", exclude_from=[tmp_path])


def test_copies_of_a_film_that_cannot_be_read_are_no_duplicates_of_it(tmp_path: Path):
    copies(tmp_path / "archive")
    cut = (tmp_path / "archive" / "a.jpg").read_bytes()[:3000]
    for name in ("cut.jpg", "cut again.jpg"):
        (tmp_path / "archive" / name).write_bytes(cut)
    data, summary = made(tmp_path)
    assert (summary.inputs, summary.quarantined, summary.duplicates) == (10, 2, 1)
    assert {left_out(data)[name][0] for name in ("cut.jpg", "cut again.jpg")} == {"quarantine"}
