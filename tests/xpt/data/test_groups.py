"""Batches of studies: all films of each, in the order that single films would have."""

from pathlib import Path

import numpy as np
import torch

from xpt.config import DataConfig
from xpt.data.groups import grouped
from xpt.data.index import open_shards
from xpt.data.loader import evaluation_loader, train_loader

CPU = torch.device("cpu")


def test_groups_are_in_the_order_of_their_first_films_and_counted_by_its_shard(shard_folder: Path):
    train = open_shards(shard_folder, "train")
    starts = train.row_starts
    rows = [[int(starts[1]), 3], [0], [5, 6]]
    groups = grouped(train, rows)
    assert groups.rows_NV.tolist() == [[0, 0], [int(starts[1]), 3], [5, 6]]
    assert groups.sizes_S.tolist() == [1, 2]


def test_batches_hold_all_films_of_each_group(shard_folder: Path):
    train = open_shards(shard_folder, "train")
    pairs = [[row, row + 1] for row in range(0, len(train) - 1, 2)]
    groups = grouped(train, pairs)
    keys = [key.decode() for key in train.rows["key"]]
    settings = {"side": 64, "patch": 16, "seed": 0, "world_size": 1, "rank": 0, "device": CPU}
    data = DataConfig(threads=1, readers=1)
    with evaluation_loader(train, data, batch=4, films=6, groups=groups, **settings) as batches:
        seen = [(batch.keys, batch.weight_B.tolist()) for batch in batches]
    assert seen[0][0] == keys[:8] and seen[1][0][:4] == keys[8:12]
    assert seen[1][1] == [1, 1, 1, 1, 0, 0, 0, 0]
    with train_loader(train, data, batch=4, accumulation=1, start=0, groups=groups, **settings) as batches:
        steps = len(pairs) // 4
        met = [key for _ in range(steps) for key in next(batches).keys]
    places = np.array([keys.index(key) for key in met]).reshape(-1, 2)
    assert (places[:, 1] == places[:, 0] + 1).all() and (places[:, 0] % 2 == 0).all()
    assert len(set(places[:, 0].tolist())) == len(places)
