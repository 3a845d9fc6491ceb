import csv
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards_tool.film import ExcludedError, FilmRules
from shards_tool.phantom.render import render_film
from shards_tool.phantom.study import plan_patient
from shards_tool.posture import ORIENTATIONS, looks_inverted, looks_lateral, orientation_of, thumbnail
from shards_tool.reading import read_film


def chest(height: int = 320, width: int = 300) -> np.ndarray:
    """Bright shoulders and abdomen, two dark lungs beside a bright middle."""
    film = np.full((height, width), 120, dtype=np.uint8)
    film[: height // 8] = 40
    film[height * 7 // 10 :] = 230
    for centre in (0.29, 0.71):
        place = round(centre * width), round(0.45 * height)
        cv2.ellipse(film, place, (round(0.15 * width), round(0.3 * height)), 0, 0, 360, 50, -1)
    film[height // 4 :, round(0.46 * width) : round(0.54 * width)] = 210
    return cv2.GaussianBlur(film, (0, 0), 6)


def side_view() -> np.ndarray:
    """A narrow body with air on both sides and one dark region in its middle."""
    film = np.zeros((320, 300), dtype=np.uint8)
    cv2.ellipse(film, (150, 190), (85, 150), 0, 0, 360, 190, -1)
    cv2.ellipse(film, (150, 140), (55, 80), 0, 0, 360, 60, -1)
    return cv2.GaussianBlur(film, (0, 0), 6)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_turned_chest_says_how_to_set_it_upright(turns: int, dtype: type):
    turned = np.ascontiguousarray(np.rot90(chest(), turns)).astype(dtype)  # counter-clockwise
    assert orientation_of(turned) == ORIENTATIONS[turns]


def test_what_is_no_chest_has_no_orientation():
    rng = np.random.default_rng(0)
    assert orientation_of(rng.integers(0, 256, (200, 200)).astype(np.uint8)) == ""
    assert orientation_of(np.tile(np.arange(200, dtype=np.uint8), (200, 1))) == ""


def test_a_side_view_looks_lateral_and_a_chest_does_not():
    assert looks_lateral(side_view())
    assert not looks_lateral(chest())
    assert not looks_lateral(np.pad(chest(), ((0, 0), (60, 60))))  # a slim patient


def encoded(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_side_views_are_left_out_only_where_nothing_names_the_view():
    film = encoded(side_view())
    with pytest.raises(ExcludedError, match="looks like a lateral"):
        read_film(film, FilmRules())
    with pytest.raises(ExcludedError, match="looks like a lateral"):
        read_film(encoded(np.ascontiguousarray(np.rot90(side_view(), 2))), FilmRules())
    assert read_film(film, FilmRules(), view="PA").pixels_HW.shape == (320, 300)
    assert read_film(film, FilmRules(views="chest")).pixels_HW.shape == (320, 300)


def test_films_on_their_side_are_flagged_or_left_out():
    film = encoded(np.ascontiguousarray(np.rot90(chest())))
    assert read_film(film, FilmRules()).orientation == "rotated90"
    with pytest.raises(ExcludedError, match="does not stand upright"):
        read_film(film, FilmRules(sideways="exclude"))


def test_a_film_that_is_clearly_a_negative_is_inverted_and_its_record_says_so():
    film = (render_film(plan_patient(5, 2, side=320)[0].spec).pixels // 16).astype(np.uint8)
    plain, negative = (read_film(encoded(pixels), FilmRules()) for pixels in (film, 255 - film))
    assert plain.repairs == () and negative.repairs == ("polarity",)
    np.testing.assert_array_equal(negative.pixels_HW, plain.pixels_HW)
    assert read_film(encoded(255 - film), FilmRules(views="all")).repairs == ()


@pytest.mark.realdata
def test_a_real_film_with_the_wrong_photometric_interpretation_is_set_right(cxr: Path):
    lying, honest = (
        read_film((cxr / "dicom" / name).read_bytes(), FilmRules())
        for name in ("Fake_MONOHR1.dcm", "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm")
    )
    np.testing.assert_array_equal(lying.pixels_HW, honest.pixels_HW)
    assert lying.photometric == "MONOCHROME1" and lying.repairs == ("polarity",) and honest.repairs == ()
    for path in sorted((cxr / "dicom").glob("RG1*.dcm")):
        assert read_film(path.read_bytes(), FilmRules()).repairs == ()


@pytest.mark.realdata
def test_real_films_on_their_side_and_laterals_are_found(cxr: Path):
    with (cxr / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    orientations, laterals = Counter(), Counter()
    for row in rows:
        pixels = cv2.imread(str(cxr / row["file"]), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        small = thumbnail(pixels)
        found = orientation_of(small)
        orientations[row["orientation"], found in ("", "upright")] += 1
        turns = ORIENTATIONS.index(found) if found else 0
        assert not looks_inverted(small)
        laterals[row["view"] == "L", looks_lateral(np.ascontiguousarray(np.rot90(small, -turns)))] += 1
    assert orientations == {("upright", True): 147, ("rotated90", False): 5}
    assert laterals == {(False, False): 149, (True, True): 3}
