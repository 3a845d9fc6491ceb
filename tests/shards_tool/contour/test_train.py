"""The training script itself, a few steps of it."""

from pathlib import Path

import numpy as np
import pytest

from shards_tool.contour.augment import Teacher, draw_sample
from shards_tool.contour.region import hull_of, iou
from shards_tool.contour.teachers import phantom_teachers


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


@pytest.mark.realdata
def test_training_is_reproducible_and_exports_what_the_finder_reads(cxr: Path, tmp_path: Path):
    from shards_tool.contour.segmenter import Segmenter
    from shards_tool.contour.train import Training, train

    outs = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for out in outs:
        train(Training(data=cxr, out=out, sources=("covidcxr",), leave_out=0, steps=2, batch=2, phantoms=1))
    film = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    a, b = (Segmenter(out)(film) for out in outs)
    np.testing.assert_array_equal(a.lung, b.lung)
    assert a.chest is not None and 0 < a.lung.min() <= a.lung.max() < 1 and outs[0].stat().st_size < 3e6
