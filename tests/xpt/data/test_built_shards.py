"""The loader on what `xpt-shards build` writes."""

from pathlib import Path

import cv2
import numpy as np
import torch

from shards_tool.build import BuildSettings, build
from xpt.config import DataConfig
from xpt.data.index import open_shards
from xpt.data.loader import evaluation_loader, train_loader

SIDE = 64


def test_loads_films_and_contours_of_a_real_build(tmp_path: Path):
    rng = np.random.default_rng(0)
    for folder in ("films", "masks"):
        (tmp_path / folder).mkdir()
    brightness = {}
    for number in range(10):
        # 96 x 128 pixels, one grey per film; the lung is the right half.
        brightness[number] = 40 + 20 * number
        pixels = np.clip(rng.normal(brightness[number], 2, (96, 128)), 0, 255).astype(np.uint8)
        mask = np.zeros((96, 128), dtype=np.uint8)
        mask[:, 64:] = 255
        cv2.imwrite(str(tmp_path / "films" / f"{number}.png"), pixels)
        cv2.imwrite(str(tmp_path / "masks" / f"{number}.png"), mask)
    build(
        [tmp_path / "films"],
        tmp_path / "shards",
        BuildSettings(
            side=SIDE, fractions=(1.0, 0.0, 0.0), shard_size=4, contour=f"masks:{tmp_path / 'masks'}"
        ),
        workers=0,
    )
    shards = open_shards(tmp_path / "shards", "train")
    assert len(shards) == 10 and shards.shard_sizes.tolist() == [4, 4, 2]
    settings = DataConfig(crop_scale=(1.0, 1.0), flip=0.0, threads=2)
    loader = evaluation_loader(
        shards,
        settings,
        side=SIDE,
        patch=8,
        batch=10,
    )
    with loader:
        (batch,) = loader
    assert batch.keys == [key.decode() for key in shards.rows["key"]]
    # The letterbox adds 8 rows of black above and below.
    means = batch.image_BCHW[:, 0, 8:56].float().mean(dim=(1, 2))
    expected = torch.tensor([float(value) for value in brightness.values()])
    torch.testing.assert_close(means.sort().values, expected, atol=3, rtol=0)
    is_valid = torch.zeros(8, 8, dtype=torch.bool)
    is_valid[1:7] = True
    assert (batch.is_valid_BL.reshape(10, 8, 8) == is_valid).all()
    lung = torch.zeros(8, 8)
    lung[1:7, 4:] = 1
    assert (batch.lung_BL.reshape(10, 8, 8) == lung).all()
    assert (batch.chest_BL >= batch.lung_BL).all()

    with train_loader(
        shards,
        DataConfig(threads=2),
        side=SIDE,
        patch=8,
        seed=0,
        batch=5,
        world_size=1,
        rank=0,
        accumulation=1,
        start=0,
        device=torch.device("cpu"),
    ) as loader:
        assert sorted(next(loader).keys + next(loader).keys) == sorted(batch.keys)
