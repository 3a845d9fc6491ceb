"""The training script itself, a few steps of it."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards_tool.contour.augment import Teacher, draw_sample
from shards_tool.contour.region import hull_of, iou
from shards_tool.contour.segmenter import SHIPPED, Segmenter
from shards_tool.contour.teachers import marked_by, phantom_teachers
from shards_tool.phantom.render import render_film
from shards_tool.phantom.study import plan_patient


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return next(iter(phantom_teachers(1)))


def test_samples_are_drawn_by_their_seed_alone(teacher: Teacher):
    first, again, other = (draw_sample(teacher, np.random.default_rng(seed), 96) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.film_SS, again.film_SS)
    assert (first.film_SS != other.film_SS).any()


def test_truth_moves_with_the_film(teacher: Teacher):
    """The film is its own lung mask, so what is drawn has to agree, but for what hides the lung."""
    same = Teacher(grey_HW=1 - teacher.lung_HW.astype(np.float32), lung_HW=teacher.lung_HW, is_phantom=True)
    agreement = []
    for seed in range(40):
        sample = draw_sample(same, np.random.default_rng(seed), 128)
        assert sample.film_SS.shape == (128, 128) and 0 <= sample.film_SS.min() <= sample.film_SS.max() <= 1
        if sample.turn < 0:
            assert not sample.lung_SS.any() and not sample.chest_SS.any()
            continue
        assert iou(hull_of(sample.lung_SS), sample.chest_SS) > 0.99
        film = 1 - sample.film_SS if sample.is_negative else sample.film_SS
        inside, beside = (
            film[sample.lung_SS > 0].mean(),
            film[(sample.chest_SS > 0) & (sample.lung_SS == 0)].mean(),
        )
        agreement.append(inside < beside - 0.2)
    assert np.mean(agreement) > 0.9


def test_a_network_marks_films_for_another(tmp_path: Path):
    """Phantoms stand in for films without masks; laterals, films with masks and noise are left out."""
    rows = [
        ("film", "PA", "upright", ""),
        ("lateral", "L", "upright", ""),
        ("masked", "PA", "upright", "m.png"),
    ]
    truth = render_film(plan_patient(7, 0, side=700)[0].spec)
    grey = np.round(truth.pixels / truth.pixels.max() * 255).astype(np.uint8)
    for name in ("film", "lateral", "masked"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), grey)
    rows.append(("noise", "PA", "upright", ""))
    cv2.imwrite(str(tmp_path / "noise.png"), np.random.default_rng(0).integers(0, 256, (600, 600), np.uint8))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "view", "orientation", "mask", "source"])
        writer.writerows([f"{name}.png", *row, "ours"] for name, *row in rows)
    (found,) = marked_by(Segmenter(SHIPPED), tmp_path, ("ours",))
    lung = cv2.resize(truth.lung, found.lung_HW.shape[::-1], interpolation=cv2.INTER_AREA) > 127
    assert iou(hull_of(lung), hull_of(found.lung_HW)) > 0.93
    assert not list(marked_by(Segmenter(SHIPPED), tmp_path, ("theirs",)))


@pytest.mark.realdata
def test_training_is_reproducible_and_exports_what_the_finder_reads(cxr: Path, tmp_path: Path):
    from shards_tool.contour.train import Training, train

    outs = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for out in outs:
        train(Training(data=cxr, out=out, sources=("covidcxr",), leave_out=0, steps=2, batch=2, phantoms=1))
    film = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    a, b = (Segmenter(out)(film) for out in outs)
    np.testing.assert_array_equal(a.lung, b.lung)
    assert a.chest is not None and 0 < a.lung.min() <= a.lung.max() < 1 and outs[0].stat().st_size < 3e6
