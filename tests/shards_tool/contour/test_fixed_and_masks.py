from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest

from shards_tool.contour import contour_finder, find_rect

FILM = np.zeros((200, 100), dtype=np.uint8)


def test_the_rectangle_is_that_of_the_released_code():
    contour = find_rect(FILM, PurePosixPath("x.png"))
    rows, columns = np.nonzero(contour.mask_hw)
    assert (rows.min(), rows.max() + 1) == (60, 160)  # tokens 6 to 15 of 20
    assert (columns.min(), columns.max() + 1) == (15, 80)  # tokens 3 to 15 of 20
    assert set(np.unique(contour.mask_hw)) == {0, 128} and contour.method == "rect"


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)


def two_lungs(height: int = 200, width: int = 100) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 4 : height // 2, width // 10 : width * 4 // 10] = 255
    mask[height // 4 : height // 2, width * 6 // 10 : width * 9 // 10] = 255
    return mask


def test_the_chest_is_the_hull_of_the_lungs_and_ignored_parts_are_lung(tmp_path: Path):
    mask = two_lungs()
    mask[60:70, 15:30] = 127
    save_mask(tmp_path / "film.png", mask)
    contour = contour_finder(f"masks:{tmp_path}")(FILM, PurePosixPath("film.dcm"))
    assert contour.method == "mask"
    np.testing.assert_array_equal(contour.mask_hw == 255, two_lungs() == 255)
    between = contour.mask_hw[50:100, 40:60]
    assert (
        (between == 128).all() and (contour.mask_hw[:50] == 0).all() and (contour.mask_hw[:, :10] == 0).all()
    )


def test_what_a_mask_marks_as_chest_is_chest(tmp_path: Path):
    mask = two_lungs()
    mask[150:160] = 128
    save_mask(tmp_path / "film.png", mask)
    contour = contour_finder(f"masks:{tmp_path}")(FILM, PurePosixPath("film.dcm"))
    assert (contour.mask_hw[150:160] == 128).all()


def test_masks_are_found_by_path_then_by_shorter_path_then_by_name(tmp_path: Path):
    finder = contour_finder(f"masks:{tmp_path}")
    path = PurePosixPath("a/b/film.dcm")
    assert finder(FILM, path).method == "rect"
    for place, row in (("film.png", 0), ("b/film.png", 1), ("a/b/film.png", 2)):
        mask = np.zeros((200, 100), dtype=np.uint8)
        mask[row] = 255
        save_mask(tmp_path / place, mask)
        assert np.flatnonzero(finder(FILM, path).mask_hw.any(axis=1)).tolist() == [row]


def test_a_mask_of_the_same_proportions_is_enlarged(tmp_path: Path):
    save_mask(tmp_path / "film.png", two_lungs(100, 50))
    contour = contour_finder(f"masks:{tmp_path}")(FILM, PurePosixPath("film.png"))
    np.testing.assert_array_equal(contour.mask_hw == 255, two_lungs() == 255)


@pytest.mark.parametrize(
    ("mask", "word"),
    [
        (two_lungs(100, 100), "100 x 100 pixels, the film 100 x 200"),
        (two_lungs() // 255, "marks nothing .values 0, 1"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused(tmp_path: Path, mask: np.ndarray, word: str):
    save_mask(tmp_path / "film.png", mask)
    with pytest.raises(ValueError, match=word):
        contour_finder(f"masks:{tmp_path}")(FILM, PurePosixPath("film.png"))


def test_an_unreadable_mask_is_refused(tmp_path: Path):
    (tmp_path / "film.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not a readable PNG"):
        contour_finder(f"masks:{tmp_path}")(FILM, PurePosixPath("film.png"))


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("oval", "not known"),
        ("masks:/no/such", "no such folder"),
        ("masks:", "not known"),
        ("network:x", "not known"),
        ("onnx:/no/such", "no such file"),
    ],
)
def test_unknown_methods_are_refused(spec: str, word: str):
    with pytest.raises(ValueError, match=word):
        contour_finder(spec)
