import cv2
import numpy as np
import pytest

from xpt.data.crop import Windows, chest_squares, draw_windows, full_frames, valid_patches

COUNT = 4000
POSITIONS = np.arange(COUNT)
WHOLE = np.tile(np.array([0, 0, 64, 64]), (COUNT, 1))


def windows(positions=POSITIONS, box=WHOLE, *, seed=1, crop_scale=(0.25, 1.0), flip=0.5) -> Windows:
    return draw_windows(
        positions, box, full_frames(len(box)), stored_side=64, seed=seed, crop_scale=crop_scale, flip=flip
    )


def corners(drawn: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Top left and bottom right, mirrored or not."""
    return np.minimum(drawn.start_B2, drawn.end_B2), np.maximum(drawn.start_B2, drawn.end_B2)


def test_windows_are_squares_inside_the_frame():
    first, last = corners(windows())
    assert first.min() >= 0 and last.max() <= 1 + 1e-7
    size = last - first
    np.testing.assert_allclose(size[:, 0], size[:, 1], atol=1e-6)


def test_area_is_uniform_in_the_range_and_places_are_uniform():
    first, last = corners(windows(crop_scale=(0.25, 0.75)))
    side = (last - first)[:, 0].astype(np.float64)
    area = side**2
    assert area.min() >= 0.25 - 1e-6 and area.max() <= 0.75 + 1e-6
    quarters = np.histogram(area, bins=4, range=(0.25, 0.75))[0]
    # 1,000 expected in each, standard deviation 27.
    assert (abs(quarters - COUNT / 4) < 5 * 27).all()
    for axis in (0, 1):
        place = first[:, axis] / (1 - side)
        assert (abs(np.histogram(place, bins=4, range=(0, 1))[0] - COUNT / 4) < 5 * 27).all()
    assert abs(np.corrcoef(first[:, 0] / (1 - side), first[:, 1] / (1 - side))[0, 1]) < 0.08


@pytest.mark.parametrize(("flip", "low", "high"), [(0.0, 0, 0), (0.3, 1055, 1345), (1.0, COUNT, COUNT)])
def test_left_and_right_are_mirrored_as_often_as_asked(flip: float, low: int, high: int):
    drawn = windows(flip=flip)
    # 0.3: standard deviation 29 around 1,200.
    assert low <= np.count_nonzero(drawn.start_B2[:, 1] > drawn.end_B2[:, 1]) <= high
    assert (drawn.start_B2[:, 0] < drawn.end_B2[:, 0]).all()


def test_window_depends_on_seed_and_position_alone():
    whole = windows()
    some = np.random.default_rng(0).permutation(COUNT)[:37]
    again = windows(POSITIONS[some], WHOLE[some])
    np.testing.assert_array_equal(again.start_B2, whole.start_B2[some])
    np.testing.assert_array_equal(again.end_B2, whole.end_B2[some])
    assert (windows(seed=2).start_B2 != whole.start_B2).any(axis=1).all()


def test_windows_are_those_of_earlier_releases():
    drawn = draw_windows(
        np.array([0, 2**40]),
        WHOLE[:2],
        full_frames(2),
        stored_side=64,
        seed=20240424,
        crop_scale=(0.5, 1.0),
        flip=0.5,
    )
    start = [[0.12088264524936676, 0.17197588086128235], [0.08231877535581589, 0.7864097952842712]]
    end = [[0.906256377696991, 0.9573495984077454], [0.8190163373947144, 0.04971224069595337]]
    np.testing.assert_array_equal(drawn.start_B2, np.array(start, dtype=np.float32))
    np.testing.assert_array_equal(drawn.end_B2, np.array(end, dtype=np.float32))


def test_whole_area_is_the_exact_frame():
    drawn = windows(crop_scale=(1.0, 1.0), flip=0.0)
    frame = full_frames(COUNT)
    np.testing.assert_array_equal(drawn.start_B2, frame.start_B2)
    np.testing.assert_array_equal(drawn.end_B2, frame.end_B2)


@pytest.mark.parametrize("crop_scale", [(0.04, 0.1), (0.2, 0.6), (0.5, 1.0)])
def test_window_wastes_no_room_on_letterbox_bars(crop_scale: tuple[float, float]):
    box = np.tile(np.array([0, 20, 64, 44]), (COUNT, 1))
    first, last = (corner * 64 for corner in corners(windows(box=box, crop_scale=crop_scale)))
    size = (last - first)[:, 1]
    shown = np.minimum(last[:, 1], 44) - np.maximum(first[:, 1], 20)
    np.testing.assert_allclose(shown, np.minimum(size, 24), atol=1e-4)
    # Whatever its size, the window has places to choose from.
    assert np.std(first[:, 1] + size / 2) > 1


def test_patches_of_letterbox_bars_only_are_not_valid():
    box = np.array([[0, 20, 64, 44], [17, 0, 47, 64], [0, 0, 64, 64]])
    valid = valid_patches(full_frames(3), box, stored_side=64, grid=8).reshape(3, 8, 8)
    np.testing.assert_array_equal(valid[0], np.tile(np.array([0, 0, 1, 1, 1, 1, 0, 0], dtype=bool), (8, 1)))
    np.testing.assert_array_equal(valid[1][:, 0], np.array([0, 0, 1, 1, 1, 1, 0, 0], dtype=bool))
    assert valid[2].all()


def test_validity_follows_crop_and_mirroring():
    rng = np.random.default_rng(0)
    box = np.sort(rng.integers(0, 65, (COUNT, 2, 2)), axis=2)
    box = np.stack([box[:, 0, 0], box[:, 1, 0], box[:, 0, 1], box[:, 1, 1]], axis=1)
    box = box[((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])) > 0][:200]
    drawn = windows(POSITIONS[: len(box)], box)
    valid = valid_patches(drawn, box, stored_side=64, grid=4).reshape(-1, 4, 4)
    # 128 points along each side of a patch, in the middle between window and box edges at most 1/128 apart.
    points = (np.arange(512) + 0.5) / 512
    for n, (top, left, bottom, right) in enumerate(box.tolist()):
        at = [
            (drawn.start_B2[n, a] + (drawn.end_B2[n, a] - drawn.start_B2[n, a]) * points) * 64 for a in (0, 1)
        ]
        inside = ((at[0] > top) & (at[0] < bottom))[:, None] & ((at[1] > left) & (at[1] < right))[None]
        sampled = inside.reshape(4, 128, 4, 128).any(axis=(1, 3))
        assert (valid[n] >= sampled).all()
        # A patch that is valid for a sliver narrower than the sampling is the only way to differ.
        assert np.count_nonzero(valid[n] != sampled) <= 4


def encoded(mask: np.ndarray) -> np.ndarray:
    ok, png = cv2.imencode(".png", mask)
    assert ok
    return png


def test_square_around_the_chest_has_room_and_stays_in_the_frame():
    upright, corner, whole = (np.zeros((40, 40), np.uint8) for _ in range(3))
    upright[8:28, 12:24] = 128
    corner[30:40, 0:20] = 255
    whole[:] = 128
    squares = chest_squares([encoded(mask) for mask in (upright, corner, whole)])
    # 20 rows and 5% of them on each side: 22 of 40, about the middle of rows 8 to 28 and columns 12 to 24.
    np.testing.assert_allclose(squares.start_B2[0], [7 / 40, 7 / 40], atol=1e-6)
    np.testing.assert_allclose(squares.end_B2[0], [29 / 40, 29 / 40], atol=1e-6)
    np.testing.assert_allclose(squares.start_B2[1], [18 / 40, 0], atol=1e-6)
    np.testing.assert_allclose(squares.end_B2[1], [1, 22 / 40], atol=1e-6)
    np.testing.assert_array_equal(squares.start_B2[2], [0, 0])
    np.testing.assert_array_equal(squares.end_B2[2], [1, 1])


def test_film_without_a_contour_is_shown_whole():
    squares = chest_squares([encoded(np.zeros((8, 8), np.uint8))])
    np.testing.assert_array_equal(squares.start_B2, [[0, 0]])
    np.testing.assert_array_equal(squares.end_B2, [[1, 1]])


def test_crops_of_a_chest_stay_in_its_square():
    squares = Windows(
        start_B2=np.tile(np.array([0.1, 0.3], np.float32), (COUNT, 1)),
        end_B2=np.tile(np.array([0.6, 0.8], np.float32), (COUNT, 1)),
    )
    drawn = draw_windows(POSITIONS, WHOLE, squares, stored_side=64, seed=1, crop_scale=(0.5, 1.0), flip=0.5)
    first, last = corners(drawn)
    assert (first >= squares.start_B2 - 1e-6).all() and (last <= squares.end_B2 + 1e-6).all()
    area = (last - first).prod(axis=1) / 0.25
    assert area.min() >= 0.5 - 1e-6 and area.max() <= 1 + 1e-6 and np.ptp(area) > 0.45
    whole = draw_windows(POSITIONS, WHOLE, squares, stored_side=64, seed=1, crop_scale=(1.0, 1.0), flip=0.0)
    np.testing.assert_allclose(whole.start_B2, squares.start_B2, atol=1e-6)
