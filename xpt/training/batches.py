"""The films of a run, as batches: what its configuration says, for this rank."""

import dataclasses

from xpt.config import RunConfig
from xpt.data.groups import Groups
from xpt.data.index import ShardSet
from xpt.data.loader import BatchLoader, evaluation_loader, train_loader
from xpt.training.distributed import Rank


def training_batches(
    shards: ShardSet, config: RunConfig, rank: Rank, *, start: int, groups: Groups | None = None
) -> BatchLoader:
    """This rank's micro-batches, after `start` images of the whole job, without end."""
    return train_loader(
        shards,
        config.data,
        side=config.model.side,
        patch=config.model.patch,
        seed=config.train.seed,
        batch=config.train.global_batch,
        world_size=rank.count,
        rank=rank.index,
        accumulation=config.train.accumulation(rank.count),
        start=start,
        device=rank.device,
        groups=groups,
    )


def validation_batches(
    shards: ShardSet, config: RunConfig, rank: Rank, *, groups: Groups | None = None
) -> BatchLoader:
    """The first `train.eval_films` films once, whole frames, shared out over the ranks."""
    return shared_frames(shards, config, rank, films=config.train.eval_films, groups=groups)


def shared_frames(
    shards: ShardSet, config: RunConfig, rank: Rank, *, films: int, groups: Groups | None = None
) -> BatchLoader:
    """The first `films` films once, whole frames, shared out over the ranks."""
    batch = config.train.micro_batch_size(rank.count)
    return _frames(shards, config, rank, batch=batch, films=films, groups=groups)


def whole_frames(
    shards: ShardSet,
    config: RunConfig,
    rank: Rank,
    *,
    batch: int | None = None,
    first: int = 0,
    films: int | None = None,
    groups: Groups | None = None,
) -> BatchLoader:
    """`films` films (None: all) from row `first` on once, the same on every rank that asks, `batch` at a time
    (None: `train.micro_batch`)."""
    alone = dataclasses.replace(rank, index=0, count=1)
    batch = batch if batch is not None else config.train.micro_batch
    return _frames(shards, config, alone, batch=batch, first=first, films=films, groups=groups)


def _frames(
    shards: ShardSet,
    config: RunConfig,
    rank: Rank,
    *,
    batch: int,
    films: int | None,
    groups: Groups | None,
    first: int = 0,
) -> BatchLoader:
    return evaluation_loader(
        shards,
        config.data,
        side=config.model.side,
        patch=config.model.patch,
        seed=config.train.seed,
        batch=batch,
        world_size=rank.count,
        rank=rank.index,
        first=first,
        films=films,
        device=rank.device,
        groups=groups,
    )
