"""The network as `build`'s default, and what its certainty is good for."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from shards_tool.build import build
from shards_tool.phantom.render import render_film
from shards_tool.phantom.study import plan_patient
from shards_tool.preview import CELL, contact_sheet
from shards_tool.schema import SAMPLES
from shards_tool.settings import BuildSettings
from shards_tool.stats import stats_of
from shards_tool.verify import verify
from tests.shards_tool.archive import SMALL, textured, write_archive, write_key

SETTINGS = BuildSettings(side=320, shard_size=4, fractions=(1, 0, 0))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms, the second on its side, and a picture of nothing."""
    folder = tmp_path_factory.mktemp("films")
    for number, turns in ((0, 0), (1, 1)):
        pixels = render_film(plan_patient(11, number, side=1280)[0].spec, scale=0.3).pixels
        cv2.imwrite(str(folder / f"{number}.png"), np.rot90((pixels >> 4).astype(np.uint8), turns))
    cv2.imwrite(str(folder / "nothing.png"), textured(0))
    return folder


@pytest.fixture(scope="module")
def data(films: Path) -> Path:
    out = films.parent / f"{films.name} data"
    summary = build([films], out, SETTINGS, key_file=write_key(films.parent / "key"), workers=0)
    assert summary.contours == {"mean": 1, "network": 2}
    return out


def test_records_say_how_the_chest_was_found_and_how_surely(data: Path):
    rows = pq.read_table(data / SAMPLES).to_pylist()
    found = [row for row in rows if row["contour"] == "network"]
    assert sorted(row["orientation"] for row in found) == ["rotated90", "upright"]
    assert all(row["contour_certainty"] > 0.8 and row["contour_reason"] == "" for row in found)
    (other,) = (row for row in rows if row["contour"] == "mean")
    assert other["contour_certainty"] < 0.8 and other["contour_reason"]
    assert verify(data, workers=0).faults == []
    counts = {section.title: section.counts for section in stats_of(data)}
    assert counts["Contour"] == {"network": 2, "mean": 1}


def test_the_sheet_of_the_worst_begins_with_the_fallback(data: Path):
    """Its region is the only one with no lungs: no line of their colour is drawn in the first cell."""
    sheet = contact_sheet(data, worst=True, count=3, columns=3).astype(int)
    blue = sheet[..., 0] - sheet[..., 2]  # of blue, green, red
    has_lungs = [
        np.count_nonzero(blue[:, column : column + CELL] > 100) > 100
        for column in range(4, 3 * CELL, CELL + 4)
    ]
    assert has_lungs == [False, True, True]


def test_films_on_their_side_can_be_left_out(films: Path, tmp_path: Path):
    settings = dataclasses.replace(SETTINGS, sideways="exclude")
    summary = build([films], tmp_path / "data", settings, key_file=write_key(tmp_path / "key"), workers=0)
    assert summary.samples == 2 and summary.excluded == 1


def test_a_sheet_of_the_worst_needs_certainties(tmp_path: Path):
    write_archive(tmp_path / "archive")
    build([tmp_path / "archive"], tmp_path / "data", SMALL, key_file=write_key(tmp_path / "key"), workers=0)
    with pytest.raises(ValueError, match=r"no film .* has a certainty"):
        contact_sheet(tmp_path / "data", worst=True)
