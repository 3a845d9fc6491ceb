"""Heat maps judged by hand-made boxes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xpt.evaluation.localisation import Box, judge, read_boxes, within


def test_the_hottest_patch_and_the_overlap_are_judged():
    heat = np.zeros((4, 4))
    heat[1, 2], heat[1, 1], heat[3, 3] = 1.0, 0.5, 0.49
    found = judge(heat, [Box(0.25, 0.5, 0.5, 1.0)])  # patches (1, 2) and (1, 3)
    assert found.hit
    assert found.iou == pytest.approx(1 / 3)  # hot: (1, 1), (1, 2)
    assert found.area == pytest.approx(2 / 16)
    missed = judge(heat, [Box(0.75, 0.75, 1.0, 1.0)])
    assert (missed.hit, missed.iou) == (False, 0)


def test_parts_of_patches_and_several_boxes_count():
    heat = np.zeros((2, 2))
    heat[0, 0] = 1
    half = judge(heat, [Box(0.0, 0.0, 0.25, 0.5)])
    assert (half.iou, half.area) == (0.5, 0.125)
    assert not half.hit  # its centre lies on the border, which is not inside
    both = judge(heat, [Box(0.0, 0.0, 0.5, 0.5), Box(0.5, 0.5, 1.0, 1.0)])
    assert (both.hit, both.iou, both.area) == (True, 0.5, 0.5)


def test_a_map_without_heat_hits_nothing():
    found = judge(np.zeros((3, 3)), [Box(0.0, 0.0, 1.0, 1.0)])
    assert (found.hit, found.iou) == (False, 0)


def test_boxes_follow_the_part_of_the_film_that_is_shown():
    boxes = [Box(0.25, 0.5, 0.5, 0.75), Box(0.0, 0.0, 0.3, 0.3), Box(0.0, 0.0, 0.1, 0.1)]
    shown = within(np.array([0.25, 0.25, 0.75, 0.75]), boxes)
    np.testing.assert_allclose(np.array(shown), [(0, 0.5, 0.5, 1), (0, 0, 0.1, 0.1), (0, 0, 0, 0)], atol=1e-9)
    heat = np.zeros((4, 4))
    heat[0, 2] = 1
    assert judge(heat, shown[:1]).hit
    # A lesion out of sight cannot be pointed at.
    assert (judge(heat, shown[2:]).hit, judge(heat, shown[2:]).iou) == (False, 0)


def test_boxes_are_read_as_shares_of_the_side(tmp_path):
    row = {"key": "k", "finding": "Mass", "top": 10.0, "left": 20.0, "bottom": 30.0, "right": 100.0}
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "boxes.parquet")
    found = read_boxes(tmp_path / "boxes.parquet", 100)
    assert found == {("k", "Mass"): [Box(0.1, 0.2, 0.3, 1.0)] * 2}
    with pytest.raises(ValueError, match="make one with xpt-shards boxes"):
        read_boxes(tmp_path / "none.parquet", 100)
