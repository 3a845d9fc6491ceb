import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards_tool.letterbox import content_box, letterbox, letterbox_contour


@given(st.integers(64, 9000), st.integers(64, 9000), st.sampled_from([64, 320, 1280]))
def test_the_box_touches_two_sides_is_centred_and_keeps_the_aspect(height: int, width: int, side: int):
    box = content_box(height, width, side)
    assert max(box.height, box.width) == side
    assert box.top >= 0 and box.left >= 0 and box.bottom <= side and box.right <= side
    assert (side - box.bottom) - box.top in (0, 1) and (side - box.right) - box.left in (0, 1)
    exact = side / max(height, width)
    assert abs(box.height - max(1, height * exact)) <= 0.5 and abs(box.width - max(1, width * exact)) <= 0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("height", "width"), [(200, 100), (100, 200), (50, 40), (64, 64)])
def test_content_is_kept_and_padding_is_zero(height: int, width: int, dtype: type):
    value = 200 if dtype is np.uint8 else 60000
    canvas, box = letterbox(np.full((height, width), value, dtype=dtype), 64)
    assert canvas.dtype == dtype and canvas.shape == (64, 64)
    inside = np.zeros((64, 64), dtype=bool)
    inside[box.top : box.bottom, box.left : box.right] = True
    assert (canvas[inside] == value).all() and (canvas[~inside] == 0).all()


def test_a_picture_of_the_right_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    np.testing.assert_array_equal(letterbox(pixels, 64)[0], pixels)


def test_shrinking_does_not_alias():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (512, 256))
    canvas, _ = letterbox(stripes, 64)
    assert np.ptp(canvas.astype(int)) <= 1 and abs(int(canvas[0, 0]) - 127) <= 1


@pytest.mark.parametrize("factor", [1.8, 1.953, 2.0, 2.1, 2.3])
@pytest.mark.parametrize("cycles", [0.1, 0.25, 0.4, 0.6, 0.8])
def test_two_linear_samples_keep_and_suppress_what_the_area_does(factor: float, cycles: float):
    """Cycles are per small pixel: up to 0.5 it can hold a wave, what is left of faster ones is aliasing."""
    side = round(320 * factor)
    wave = 1e4 * np.sin(2 * np.pi * cycles * np.arange(side) / factor + 0.3)
    film = np.rint(np.tile(2e4 + wave, (side, 1))).astype(np.uint16)
    area = cv2.resize(film, (320, 320), interpolation=cv2.INTER_AREA)
    kept, of_area = (picture[160].std() / wave.std() for picture in (letterbox(film, 320)[0], area))
    assert abs(kept - of_area) < 0.035


def test_a_real_shape_of_film_shrinks_as_by_area():
    rng = np.random.default_rng(0)
    film = cv2.GaussianBlur(rng.integers(0, 60000, (1001, 820)).astype(np.uint16), (0, 0), 1.0)
    canvas, box = letterbox(film, 512)
    area = cv2.resize(film, (box.width, box.height), interpolation=cv2.INTER_AREA)
    ours = canvas[box.top : box.bottom, box.left : box.right]
    difference = ours.astype(float) - area
    assert abs(difference.mean()) < 1
    assert difference.std() < 0.05 * area.std()


@pytest.mark.parametrize(("height", "width"), [(700, 500), (500, 700), (90, 130)])
def test_the_contour_lies_over_what_it_outlines(height: int, width: int):
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width // 3, height // 3), 20, 0, 360, 128, -1)
    cv2.ellipse(mask, (width // 3, height // 2), (width // 8, height // 5), 0, 0, 360, 255, -1)
    contour = letterbox_contour(mask, height, width, 320)
    assert contour.shape == (40, 40) and set(np.unique(contour)) == {0, 128, 255}
    for value, region in ((128, mask >= 128), (255, mask == 255)):
        canvas, _ = letterbox(region.astype(np.uint8) * 255, 320)
        share = canvas.reshape(40, 8, 40, 8).mean(axis=(1, 3)) / 255
        expected, got = share >= 0.5, contour >= value
        undecided = np.abs(share - 0.5) < 0.06
        assert (expected == got)[~undecided].all() and undecided.mean() < 0.1
