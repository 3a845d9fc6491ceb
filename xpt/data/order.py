"""Which film stands where: a pure function of (seed, position).

`position` is the number of images that the whole job consumed before this one, so a checkpoint's data
state is one integer, and the content of every global batch is the same for any number of ranks,
workers or restarts. An epoch permutes the shards and takes them in windows; the samples of a window
are permuted among themselves. So reads stay within a few open shards, and memory stays constant:
the permutation of the shards, and that of the windows in use.

Permutations are the stable argsort of raw Philox words, not `Generator.permutation`, whose algorithm
numpy may change between releases (NEP 19 promises stable streams for bit generators only).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

# The second word of the Philox key, so that the three uses never share a stream.
_SHARDS, _SAMPLES, _RESERVE = 0, 1, 2


def _philox_words(seed: int, use: int, counter: tuple[int, int], count: int) -> np.ndarray:
    """`count` words of 64 bits of the stream named by (seed, use, counter). Word 0 of numpy's counter is
    left at zero for the generator to count blocks in."""
    bits = np.random.Philox(
        key=np.array([seed, use], dtype=np.uint64),
        counter=np.array([0, *counter, 0], dtype=np.uint64),
    )
    return bits.random_raw(count)


def _permutation(seed: int, use: int, counter: tuple[int, int], count: int) -> np.ndarray:
    return np.argsort(_philox_words(seed, use, counter, count), kind="stable")


class Located(NamedTuple):
    """Where the samples of some positions are."""

    epoch_N: Int64[np.ndarray, "N"]
    shard_N: Int64[np.ndarray, "N"]
    """Place of the shard in the split's list."""
    index_N: Int64[np.ndarray, "N"]
    """Place of the sample in its shard."""


@dataclass(frozen=True)
class _Epoch:
    shards: np.ndarray
    """The shards in this epoch's order."""
    starts: np.ndarray
    """Samples of the epoch before each of them, and the total as the last entry."""


class SampleOrder:
    """The order of one split's samples for one seed.

    `shard_sizes` are samples per shard, `window` is in shards. Epochs follow each other without a gap.
    Raises ValueError for a split without samples or settings out of range.
    """

    def __init__(
        self, shard_sizes: Sequence[int] | Int64[np.ndarray, "S"], *, seed: int, window: int
    ) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        if sizes.sum() == 0:
            raise ValueError("shard_sizes: got no samples at all, wanted at least one")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: got {seed}, wanted 0 <= seed < 2**64")
        if window < 1:
            raise ValueError(f"window: got {window} shards, wanted at least 1")
        self.total = int(sizes.sum())
        """Samples in one epoch."""
        self._sizes = sizes
        self._seed = seed
        self._window = window
        # A batch touches two epochs at most; reading ahead touches the next window early.
        self._epoch = lru_cache(maxsize=2)(self._permute_epoch)
        self._window_order = lru_cache(maxsize=3)(self._permute_window)

    def locate(self, positions_N: Int64[np.ndarray, "N"]) -> Located:
        """Epoch, shard and index of each position (each at least 0)."""
        epoch_N = positions_N // self.total
        offset_N = positions_N - epoch_N * self.total
        shard_N = np.empty_like(positions_N)
        index_N = np.empty_like(positions_N)
        for epoch_number in np.unique(epoch_N).tolist():
            epoch = self._epoch(epoch_number)
            slot_N = np.searchsorted(epoch.starts, offset_N, side="right") - 1
            window_N = slot_N // self._window
            for window_number in np.unique(window_N[epoch_N == epoch_number]).tolist():
                here_N = (epoch_N == epoch_number) & (window_N == window_number)
                first = epoch.starts[window_number * self._window]
                place_M = first + self._window_order(epoch_number, window_number)[offset_N[here_N] - first]
                slot_M = np.searchsorted(epoch.starts, place_M, side="right") - 1
                shard_N[here_N] = epoch.shards[slot_M]
                index_N[here_N] = place_M - epoch.starts[slot_M]
        return Located(epoch_N, shard_N, index_N)

    def _permute_epoch(self, epoch: int) -> _Epoch:
        shards = _permutation(self._seed, _SHARDS, (epoch, 0), len(self._sizes))
        return _Epoch(shards, np.concatenate([[0], np.cumsum(self._sizes[shards])]))

    def _permute_window(self, epoch: int, window: int) -> np.ndarray:
        starts = self._epoch(epoch).starts
        first_slot = window * self._window
        last_slot = min(first_slot + self._window, len(self._sizes))
        return _permutation(
            self._seed, _SAMPLES, (epoch, window), int(starts[last_slot] - starts[first_slot])
        )


def reserve(seed: int, position: int, attempt: int, total: int) -> int:
    """The sample, 0 <= n < total in index order, that stands in at `position` when the one planned there
    and `attempt` stand-ins before could not be read. Pure, so every layout of ranks puts in the same one."""
    # The bias of the remainder is total / 2**64.
    return int(_philox_words(seed, _RESERVE, (position, attempt), 1)[0]) % total


def micro_batch_size(batch: int, *, world_size: int, accumulation: int) -> int:
    """Images of one forward on one rank. Raises ValueError where the global batch cannot be shared out."""
    shares = world_size * accumulation
    if batch < 1 or batch % shares:
        raise ValueError(
            f"global batch: got {batch} images for {world_size} ranks x {accumulation} accumulation steps, "
            f"wanted a multiple of {shares}; set the batch to {max(1, round(batch / shares)) * shares}, or "
            f"choose ranks and accumulation whose product divides {batch}"
        )
    return batch // shares


def global_batch(step: int, batch: int) -> Int64[np.ndarray, "B"]:
    """The positions of global step `step`."""
    return np.arange(step * batch, (step + 1) * batch, dtype=np.int64)


def rank_slice(
    step: int, batch: int, *, world_size: int, rank: int, micro_step: int, accumulation: int
) -> Int64[np.ndarray, "B"]:
    """The positions of one rank's forward `micro_step` within global step `step`: the slices of all ranks
    and micro-steps make up `global_batch(step, batch)`. Raises ValueError as `micro_batch_size` does."""
    size = micro_batch_size(batch, world_size=world_size, accumulation=accumulation)
    assert 0 <= rank < world_size and 0 <= micro_step < accumulation
    first = step * batch + (micro_step * world_size + rank) * size
    return np.arange(first, first + size, dtype=np.int64)


def evaluation_positions(
    count: int, *, batch: int, world_size: int, rank: int
) -> tuple[Int64[np.ndarray, "F B"], Bool[np.ndarray, "F B"]]:
    """One rank's share of films 0 .. count-1 in index order: rows, and whether they count.

    Every rank gets the same number F of forwards, because they meet in collectives; what is missing in
    the last one is filled with film count-1 and marked False. Over all ranks each film is True once.
    """
    assert count > 0 and batch > 0 and 0 <= rank < world_size
    forwards = -(-count // (batch * world_size))
    rows_FRB = np.arange(forwards * world_size * batch, dtype=np.int64).reshape(forwards, world_size, batch)
    rows_FB = rows_FRB[:, rank]
    return np.minimum(rows_FB, count - 1), rows_FB < count
