"""Against maps whose regions are known because they were drawn."""

import numpy as np
import pytest

from shards_tool.contour.region import hull_of
from shards_tool.contour.trust import doubt_about, regions_of

SIDE = 200


def lungs(*, left: bool = True, right: bool = True, scale: float = 1.0) -> np.ndarray:
    """float32, 1 in two rectangles beside the middle."""
    out = np.zeros((SIDE, SIDE), np.float32)
    half = round(60 * scale)
    rows = slice(100 - half, 100 + half)
    if left:
        out[rows, 100 - half : 90] = 1
    if right:
        out[rows, 110 : 100 + half] = 1
    return out


def test_two_lungs_are_found_and_certain():
    lung = lungs()
    regions = regions_of(lung, hull_of(lung).astype(np.float32))
    np.testing.assert_array_equal(regions.lung, lung)
    np.testing.assert_array_equal(regions.chest, hull_of(lung))
    assert regions.lobes == 2 and regions.certainty == 1 and doubt_about(regions) == ""


def test_specks_are_dropped_and_holes_filled():
    lung = lungs()
    lung[5:8, 5:8] = 1
    lung[95:100, 60:65] = 0
    np.testing.assert_array_equal(regions_of(lung, None).lung, lungs())


def test_the_chest_map_completes_a_lung_that_is_white():
    chest = hull_of(lungs())
    regions = regions_of(lungs(right=False), chest.astype(np.float32))
    assert regions.lobes == 1
    np.testing.assert_array_equal(regions.chest, chest)


def test_a_shallow_edge_is_uncertain_by_its_width():
    lung = lungs()
    lung[130:160] *= 0.5  # the lower quarter of both lungs: lung at 0.25, none at 0.75
    regions = regions_of(lung, None)
    assert regions.certainty == pytest.approx(0.75, abs=0.02)


def test_a_chest_map_that_disagrees_lowers_the_certainty():
    lung = lungs()
    regions = regions_of(lung, hull_of(lungs(scale=0.8)).astype(np.float32))
    assert regions.certainty == pytest.approx(0.64, abs=0.02) and doubt_about(regions) == "uncertain"


@pytest.mark.parametrize(
    ("lung", "word"),
    [
        (np.zeros((SIDE, SIDE), np.float32), "no chest found"),
        (np.ones((SIDE, SIDE), np.float32), "fills the film"),
        (lungs(scale=0.2), "no chest found"),
        (np.roll(lungs(scale=0.6), 64, axis=0), "at the film's edge"),
        (np.pad(np.ones((120, 120), np.float32), 40), "lungs are 100%"),
    ],
)
def test_what_cannot_be_a_chest_is_doubted(lung: np.ndarray, word: str):
    assert word in doubt_about(regions_of(lung, None))
