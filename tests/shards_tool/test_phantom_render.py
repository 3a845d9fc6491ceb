"""Phantom films: what is drawn, where, and how the greys are spread."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from shards_tool.phantom.anatomy import Chest, draw_body
from shards_tool.phantom.findings import (
    CARDIOMEGALY,
    CONSOLIDATION,
    EFFUSION,
    FINDINGS,
    NODULE,
    PNEUMOTHORAX,
    Finding,
    draw_finding,
)
from shards_tool.phantom.render import WHITE, Film, FilmSpec, chest_of, render_film
from shards_tool.phantom.study import draw_pose, plan_patient

SEEDS = range(6)
SCALE = 0.5


def spec_of(seed: int, *findings: Finding) -> FilmSpec:
    rng = np.random.default_rng(seed)
    body = draw_body(rng)
    return FilmSpec(body=body, pose=draw_pose(rng, body, side=1440), findings=findings)


@pytest.fixture(scope="module")
def normal_films() -> list[tuple[FilmSpec, Film]]:
    return [(spec_of(seed), render_film(spec_of(seed), scale=SCALE)) for seed in SEEDS]


def test_the_same_spec_gives_the_same_film():
    first, second = (
        render_film(spec_of(1, draw_finding(NODULE, np.random.default_rng(1))), scale=0.3) for _ in "ab"
    )
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.label_mask(), second.label_mask())
    assert first.findings == second.findings


def test_the_number_of_opencv_threads_changes_no_pixel_and_is_left_as_it_was():
    # At full size OpenCV divides its work; this film came out differently before its threads were fixed.
    spec = plan_patient(0, 3, side=1440)[0].spec
    before = cv2.getNumThreads()
    films = []
    try:
        for threads in (1, 2, 3):
            cv2.setNumThreads(threads)
            films.append(render_film(spec).pixels)
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(films[0], films[1]) and np.array_equal(films[0], films[2])


def test_pixels_have_12_bits_and_the_size_of_the_pose():
    spec = spec_of(0)
    film = render_film(spec)
    assert film.pixels.shape == (spec.pose.height, spec.pose.width)
    assert film.pixels.dtype == np.uint16 and film.pixels.max() <= WHITE
    assert max(film.pixels.shape) >= 1280


def test_a_coarser_rendering_shows_the_same_body_as_a_shrunk_fine_one():
    spec = spec_of(2, Finding(name=NODULE, side=-1, zone="middle", size=24.0, across=0.6, down=0.5))
    fine, coarse = render_film(spec), render_film(spec, scale=0.25)
    size = coarse.pixels.shape[::-1]
    shrunk = cv2.resize(fine.pixels, size, interpolation=cv2.INTER_AREA).astype(float)
    difference = np.abs(cv2.blur(shrunk, (3, 3)) - cv2.blur(coarse.pixels.astype(float), (3, 3)))
    inside = cv2.erode(coarse.exposed, np.ones((9, 9), np.uint8)) > 0
    assert difference[inside].mean() < 0.015 * WHITE
    lung = cv2.resize(fine.lung, size, interpolation=cv2.INTER_AREA) > 127
    overlap = (lung & (coarse.lung > 0)).sum() / (lung | (coarse.lung > 0)).sum()
    assert overlap > 0.98
    np.testing.assert_allclose(np.array(fine.findings[0].box) / 4, coarse.findings[0].box, atol=2.5)


def test_the_mask_has_two_lungs_inside_one_convex_chest(normal_films):
    for _, film in normal_films:
        outlines, _ = cv2.findContours(film.lung, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        assert len(outlines) == 2
        right, left = sorted(float(o[:, 0, 0].mean()) for o in outlines)
        assert right < film.lung.shape[1] / 2 < left
        areas = [cv2.contourArea(o) for o in outlines]
        assert 0.5 < areas[0] / areas[1] < 2
        assert (film.chest[film.lung > 0] == 255).all()
        chest, _ = cv2.findContours(film.chest, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        assert len(chest) == 1
        assert cv2.contourArea(chest[0]) > 0.99 * cv2.contourArea(cv2.convexHull(chest[0]))
        # Nothing of the chest is cut off by the film's edge or its borders.
        assert (film.exposed[film.lung > 0] == 255).mean() > 0.995
        assert 0.2 < (film.chest > 0).mean() < 0.7
        values, counts = np.unique(film.label_mask(), return_counts=True)
        assert values.tolist() == [0, 128, 255] and counts.min() > 1000


def test_lungs_are_dark_and_the_middle_and_the_abdomen_bright(normal_films):
    for _, film in normal_films:
        between = (film.chest > 0) & (film.lung == 0)
        lung, middle = np.median(film.pixels[film.lung > 0]), np.median(film.pixels[between])
        assert lung + 0.15 * WHITE < middle


def test_greys_are_spread_without_clipping_inside_the_exposed_field(normal_films):
    for _, film in normal_films:
        greys = film.pixels[cv2.erode(film.exposed, np.ones((5, 5), np.uint8)) > 0]
        assert (greys == 0).mean() < 0.01 and (greys == WHITE).mean() < 0.01
        low, high = np.percentile(greys, (2, 98))
        assert high - low > 0.4 * WHITE
        assert len(np.unique(greys)) > 1500


def test_a_black_shutter_is_zero_and_a_white_rim_is_bright():
    base = spec_of(3)
    for border, low, high in (("black", 0, 0), ("white", 0.95 * WHITE, WHITE)):
        film = render_film(replace(base, pose=replace(base.pose, border=border)), scale=0.3)
        rim = film.pixels[film.exposed == 0]
        assert rim.size > 500 and low <= rim.min() and rim.max() <= high


def test_the_marker_stands_at_its_side_of_the_patient():
    base = spec_of(3)
    pose = replace(base.pose, border="none", rotation_deg=0.0)
    without = render_film(replace(base, pose=replace(pose, marker="")), scale=0.5).pixels.astype(int)
    for marker in "RL":
        film = render_film(replace(base, pose=replace(pose, marker=marker)), scale=0.5)
        columns = np.flatnonzero((film.pixels.astype(int) - without > 0.3 * WHITE).any(axis=0))
        third = film.pixels.shape[1] / 3
        assert len(columns) and (columns.max() < third if marker == "R" else columns.min() > 2 * third)


@pytest.mark.parametrize("name", [NODULE, CONSOLIDATION, EFFUSION, PNEUMOTHORAX])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_lung_finding_changes_the_film_in_its_box_and_hardly_outside(name, seed):
    finding = draw_finding(name, np.random.default_rng(seed))
    base = spec_of(seed)
    # No image processing that spreads a local change over its surroundings.
    base = replace(base, pose=replace(base.pose, harmonise=0.0, sharpen=0.0, scatter=0.0, rotation_deg=0.0))
    before = render_film(base, scale=SCALE)
    after = render_film(replace(base, findings=(finding,)), scale=SCALE)
    (drawn,) = after.findings
    left, top, right, bottom = drawn.box
    change = cv2.blur(after.pixels.astype(np.float32) - before.pixels, (5, 5))
    inside = change[top:bottom, left:right]
    strongest = np.percentile(np.abs(inside), 99)
    assert strongest > 0.03 * WHITE
    outside = np.abs(change)
    outside[max(top - 12, 0) : bottom + 12, max(left - 12, 0) : right + 12] = 0
    assert np.percentile(outside[before.exposed > 0], 99.5) < 0.4 * strongest
    # Air is darker, everything else brighter.
    brighter = inside[np.abs(inside) > 0.5 * strongest].mean() > 0
    assert brighter == (name != PNEUMOTHORAX)
    middle = before.pixels.shape[1] / 2
    assert ((left + right) / 2 > middle) == (finding.side > 0)


def test_a_zone_is_the_third_of_the_lung_where_the_nodule_lies():
    base = spec_of(4)
    base = replace(base, pose=replace(base.pose, rotation_deg=0.0))
    for seed in range(9):
        finding = draw_finding(NODULE, np.random.default_rng(seed))
        film = render_film(replace(base, findings=(finding,)), scale=0.3)
        half = film.lung.copy()
        middle = film.lung.shape[1] // 2
        half[:, slice(middle, None) if finding.side < 0 else slice(middle)] = 0
        rows, columns = np.flatnonzero(half.any(axis=1)), np.flatnonzero(half.any(axis=0))
        # The diaphragm's height is taken in the middle of the half chest, beside the heart.
        edge = columns[0] if finding.side < 0 else columns[-1]
        dome = np.flatnonzero(half[:, (edge + middle) // 2])[-1]
        _, top, _, bottom = film.findings[0].box
        third = 3 * ((top + bottom) / 2 - rows[0]) / (dome - rows[0])
        expected = ("upper", "middle", "lower").index(finding.zone)
        assert expected - 0.15 < third < expected + 1.15


def test_a_nodules_box_has_its_diameter():
    finding = Finding(name=NODULE, side=1, zone="upper", size=20.0, across=0.6, down=0.25)
    spec = spec_of(5, finding)
    left, top, right, bottom = render_film(spec).findings[0].box
    for extent in (right - left, bottom - top):
        assert extent * spec.pose.pixel_mm == pytest.approx(20, abs=4.5)


def test_the_heart_is_as_wide_as_the_findings_say():
    for seed in SEEDS:
        assert 0.35 < chest_of(spec_of(seed)).cardiothoracic_ratio() <= 0.50
        ill = Finding(name=CARDIOMEGALY, side=0, zone="", size=0.62)
        assert chest_of(spec_of(seed, ill)).cardiothoracic_ratio() == pytest.approx(0.62, abs=0.005)


def test_the_enlarged_heart_covers_the_part_of_the_chest_that_its_ratio_says():
    spec = spec_of(2, Finding(name=CARDIOMEGALY, side=0, zone="", size=0.64))
    spec = replace(spec, pose=replace(spec.pose, rotation_deg=0.0, turn_mm=0.0))
    film = render_film(spec, scale=SCALE)
    left, _, right, _ = film.findings[0].box
    columns = np.flatnonzero(film.chest.any(axis=0))
    assert (right - left) / (columns[-1] - columns[0]) == pytest.approx(0.64, abs=0.05)


def test_every_finding_that_can_be_drawn_shows():
    for name in FINDINGS:
        for seed in range(4):
            finding = draw_finding(name, np.random.default_rng(100 + seed))
            film = render_film(spec_of(seed, finding), scale=0.2)
            assert [d.finding for d in film.findings] == [finding]


def test_a_deeper_breath_lowers_the_diaphragm_and_a_turn_moves_the_heart():
    body = spec_of(0).body
    full = Chest(body=body, inspiration=0.0, turn_mm=0.0, heart_scale=1.0)
    shallow = replace(full, inspiration=1.0)
    place = np.array([70.0])
    for side in (-1, 1):
        assert shallow.dome(place, side)[0] < full.dome(place, side)[0] - 20
    assert full.dome(place, -1)[0] < full.dome(place, 1)[0]  # the right dome is the higher one
    turned = replace(full, turn_mm=6.0)
    assert turned.heart()[1].x == pytest.approx(full.heart()[1].x + 6)


def test_a_scale_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"scale is 3\.0, wanted 0\.05 to 2"):
        render_film(spec_of(0), scale=3.0)
    small = spec_of(0)
    small = replace(small, pose=replace(small.pose, height=96, width=96))
    with pytest.raises(ValueError, match="wanted at least 32 x 32"):
        render_film(small, scale=0.1)
