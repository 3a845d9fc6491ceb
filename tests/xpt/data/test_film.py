"""A single film, read as training sees it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from shards_tool.build import BuildSettings, build
from shards_tool.phantom.render import render_film
from shards_tool.phantom.study import plan_patient
from xpt.config import DataConfig
from xpt.data.film import read_study
from xpt.data.index import open_shards
from xpt.data.loader import evaluation_loader

SIDE = 160


@pytest.mark.parametrize("crop_to", ["frame", "chest"])
def test_a_film_alone_is_what_a_loader_shows_of_its_shard(tmp_path: Path, crop_to):
    film = render_film(plan_patient(3, 0, side=700)[0].spec)
    (tmp_path / "films").mkdir()
    path = tmp_path / "films" / "film.png"
    cv2.imwrite(str(path), np.round(film.pixels / film.pixels.max() * 255).astype(np.uint8))
    settings = BuildSettings(side=1280, fractions=(1.0, 0.0, 0.0))
    build([path.parent], tmp_path / "shards", settings, workers=0)
    with evaluation_loader(
        open_shards(tmp_path / "shards", "train"),
        DataConfig(crop_to=crop_to, threads=1, readers=1),
        side=SIDE,
        patch=16,
        batch=1,
    ) as loader:
        batch = next(loader)
    image_VCHW, is_valid_VL = read_study([path], side=SIDE, patch=16, crop_to=crop_to)
    assert (batch.window_B4[0].tolist() == [0, 0, 1, 1]) == (crop_to == "frame")
    torch.testing.assert_close(is_valid_VL, batch.is_valid_BL)
    difference = (image_VCHW.float() - batch.image_BCHW.float()).abs()
    # A pixel's width of shift at the edges of bones, and the JPEG between them.
    assert difference.mean() < 3
    moved = (image_VCHW.float().roll(8, 2) - batch.image_BCHW.float()).abs()
    assert difference.mean() < moved.mean() / 3
