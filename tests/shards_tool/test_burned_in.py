import cv2
import numpy as np
import pytest

from shards_tool.burned_in import find_writing, mask_writing
from tests.shards_tool.archive import picture


def film(
    text: str = "", *, at: tuple[int, int] = (40, 60), grey: int = 255, scale: float = 0.9
) -> np.ndarray:
    pixels = picture(1, 1280, 1100) // 2 + 40
    if text:
        cv2.putText(pixels, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, grey, 2, cv2.LINE_AA)
    return pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("at", "grey"), [((40, 60), 255), ((600, 1240), 255), ((40, 60), 0)])
def test_writing_near_the_borders_is_found_where_it_is(dtype: type, at: tuple[int, int], grey: int):
    pixels = film("DOE JANE 12.03.1961", at=at, grey=grey).astype(dtype)
    if dtype is np.uint16:
        pixels *= 257
    lines = find_writing(pixels)
    is_written = film("DOE JANE 12.03.1961", at=at, grey=grey) != film()
    is_covered = np.zeros(pixels.shape, dtype=bool)
    for line in lines:
        is_covered[line.top : line.bottom, line.left : line.right] = True
    assert (is_written & is_covered).sum() > 0.9 * is_written.sum()
    assert is_covered.sum() < 4 * is_written.sum()


@pytest.mark.parametrize("text", ["", "R", "L R"])
def test_a_film_without_writing_and_side_markers_are_left_alone(text: str):
    assert find_writing(film(text, scale=2)) == []


def test_masked_writing_is_gone_and_the_rest_is_as_it_was():
    pixels = film("ID 4471920")
    lines = find_writing(pixels)
    masked = mask_writing(pixels, lines)
    assert find_writing(masked) == []
    changed = masked != pixels
    assert 0 < changed.sum() < 0.02 * changed.size
    assert np.abs(masked.astype(int) - film().astype(int))[changed].max() < 40


def test_tiny_films_have_no_room_for_writing():
    assert find_writing(picture(0, 64, 64)) == []
