"""The two loaders on the folders of these tests."""

from pathlib import Path

import torch

from tests.xpt.data.conftest import SIDE
from xpt.config import DataConfig
from xpt.data.index import open_shards
from xpt.data.loader import BatchLoader, evaluation_loader, train_loader

CPU = torch.device("cpu")
SETTINGS = DataConfig(
    crop_scale=(0.3, 1.0),
    flip=0.5,
    window_shards=2,
    threads=2,
    readers=2,
    max_bad_share=1.0,
)
FRAMES = DataConfig(crop_scale=(1.0, 1.0), flip=0.0, threads=2, readers=2, prefetch=3)
BATCH = 8


def training(
    folder: Path,
    settings: DataConfig = SETTINGS,
    *,
    side: int = 32,
    patch: int = 8,
    batch: int = BATCH,
    world_size: int = 1,
    rank: int = 0,
    accumulation: int = 1,
    start: int = 0,
    device: torch.device = CPU,
) -> BatchLoader:
    return train_loader(
        open_shards(folder, "train"),
        settings,
        side=side,
        patch=patch,
        seed=42,
        batch=batch,
        world_size=world_size,
        rank=rank,
        accumulation=accumulation,
        start=start,
        device=device,
    )


def evaluation(
    folder: Path,
    settings: DataConfig = FRAMES,
    *,
    batch: int = 3,
    world_size: int = 1,
    rank: int = 0,
    films: int | None = None,
) -> BatchLoader:
    return evaluation_loader(
        open_shards(folder, "train"),
        settings,
        side=SIDE,
        patch=8,
        seed=42,
        batch=batch,
        world_size=world_size,
        rank=rank,
        films=films,
        device=CPU,
    )
