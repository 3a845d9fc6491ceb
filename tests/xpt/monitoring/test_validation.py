"""Validation scores against plain computations from the predictions."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from kernels import patchify, rect_contour
from tests.xpt.models.conftest import tiny
from xpt.config import Config
from xpt.data.batch import Batch
from xpt.models.mae import MAE, PIXEL_MEAN, PIXEL_STD
from xpt.monitoring import validation
from xpt.monitoring.pictures import HEADER, reconstruction_sheet
from xpt.monitoring.validation import evaluate, predict
from xpt.training.masking import region_of


@pytest.fixture
def batch(films) -> Batch:
    image, contour, valid, position = films
    return Batch(
        image_BCHW=image,
        chest_BL=contour,
        lung_BL=contour * (torch.arange(36) % 2),
        is_valid_BL=valid,
        position_B=position,
        weight_B=torch.tensor([1.0, 1.0, 0.0]),
        window_B4=np.tile(np.array([0, 0, 1, 1], np.float32), (3, 1)),
        keys=["a", "b", "c"],
        replaced=0,
    )


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(validation, "all_reduce", lambda values: values)


def model_of(config: Config) -> MAE:
    torch.manual_seed(0)
    return MAE(config)


@pytest.mark.parametrize("norm_targets", [False, True])
def test_scores_are_those_of_plain_loops_over_films_and_patches(batch: Batch, norm_targets: bool):
    config = tiny(norm_targets=norm_targets)
    model = model_of(config)
    scores = evaluate(model, [batch, batch], config)
    out = predict(model, batch, config)
    films, of_means, inside, outside = [], [], [], []
    for film in (0, 1):  # the third has no weight
        errors, mean_errors = [], []
        for slot, patch in enumerate(out.predicted_BM[film].tolist()):
            if not batch.is_valid_BL[film, patch]:
                continue
            target = patchify(batch.image_BCHW, 8)[film, patch].double() / 255
            target = (target - PIXEL_MEAN) / PIXEL_STD
            if norm_targets:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((out.pred_BMP[film, slot] - target).square().mean().item())
            mean_errors.append((target - target.mean()).square().mean().item())
            (inside if batch.chest_BL[film, patch] >= 0.5 else outside).append(errors[-1])
        films.append(np.mean(errors))
        of_means.append(np.mean(mean_errors))
    assert scores["val/loss"] == pytest.approx(np.mean(films), rel=1e-4)
    assert scores["val/patch_mean"] == pytest.approx(np.mean(of_means), rel=1e-4)
    assert scores["val/loss_chest"] == pytest.approx(np.mean(inside), rel=1e-4)
    assert scores["val/loss_outside"] == pytest.approx(np.mean(outside), rel=1e-4)


def test_masks_of_an_evaluation_are_always_the_same(batch: Batch):
    config = tiny()
    again = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=99))
    first, second = predict(model_of(config), batch, config), predict(model_of(again), batch, again)
    assert torch.equal(first.visible_BK, second.visible_BK)


def test_the_region_follows_the_strategy(batch: Batch):
    def region(**mask: Any) -> torch.Tensor:
        config = tiny()
        return region_of(batch, dataclasses.replace(config, mask=dataclasses.replace(config.mask, **mask)))

    assert torch.equal(region(), batch.chest_BL)
    assert torch.equal(region(region="lung"), batch.lung_BL)
    assert torch.equal(region(strategy="rect"), rect_contour(6).expand(3, -1))
    assert region(strategy="random").abs().sum() == 0


@pytest.mark.parametrize("mask", [{"strategy": "rect"}, {"strategy": "random"}, {"draw": "weighted"}])
def test_every_strategy_trains(batch: Batch, mask: dict[str, str]):
    config = tiny()
    config = dataclasses.replace(config, mask=dataclasses.replace(config.mask, **mask))
    out = model_of(config)(batch.image_BCHW, region_of(batch, config), batch.is_valid_BL, batch.position_B, 0)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert out.visible_BK.shape == (3, config.kept)


def test_the_sheet_shows_visible_patches_as_they_are_and_predictions_in_between(batch: Batch):
    config = tiny(norm_targets=False)
    out = predict(model_of(config), batch, config)
    sheet = reconstruction_sheet([(batch, out)], config)
    assert sheet.shape == (HEADER + 2 * 48, 3 * 48, 3)  # the film without weight is no film
    film = sheet[HEADER : HEADER + 48, :, 0]
    original, made = (torch.tensor(panel.copy())[None, None] for panel in (film[:, :48], film[:, 96:]))
    assert torch.equal(original[0, 0], batch.image_BCHW[0, 0])
    original_LP, made_LP = patchify(original, 8)[0], patchify(made, 8)[0]
    visible, predicted = out.visible_BK[0], out.predicted_BM[0]
    assert torch.equal(made_LP[visible], original_LP[visible])
    wanted = ((out.pred_BMP[0] * PIXEL_STD + PIXEL_MEAN) * 255).round().clamp(0, 255)
    assert torch.equal(made_LP[predicted].float(), wanted)
