"""From a position in the order of all films to batches on the device.

Three stages overlap with the training step: threads read and check the bytes of the batches to come,
DALI decodes and crops those read, and the caller uses the one that is done.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from types import TracebackType

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from xpt.config import DataConfig
from xpt.data.batch import Batch, coverage
from xpt.data.crop import Windows, chest_squares, draw_windows, full_frames, valid_patches
from xpt.data.groups import Groups
from xpt.data.index import ShardSet, expect_random_reads
from xpt.data.order import SampleOrder, evaluation_positions, micro_batch_size, rank_slice
from xpt.data.pipeline import PicturePipeline
from xpt.data.reader import DataError, Fault, Sample, SampleSource

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Request:
    """The films of one micro-batch on this rank."""

    position_B: Int64[np.ndarray, "B"]
    row_B: Int64[np.ndarray, "B"]
    weight_B: Float32[np.ndarray, "B"]

    def of_groups(self, groups: Groups | None) -> "_Request":
        """The films of the groups that the rows mean, one group after the other."""
        if groups is None:
            return self
        views = groups.rows_NV.shape[1]
        return _Request(
            position_B=self.position_B.repeat(views),
            row_B=groups.rows_NV[self.row_B].ravel(),
            weight_B=self.weight_B.repeat(views),
        )


class BatchLoader:
    """Iterates over batches; made by `train_loader` or `evaluation_loader`. Close it, or use it in `with`.

    `is_training` crops and mirrors, and lets stand-ins of damaged films count. Iteration raises
    DataError where too many films are damaged, where the file system does not answer, or where DALI cannot
    decode a film although its bytes are those that were written.
    """

    def __init__(
        self,
        shards: ShardSet,
        data: DataConfig,
        requests: Iterator[_Request],
        *,
        side: int,
        patch: int,
        batch: int,
        depth: int,
        seed: int,
        is_training: bool,
        device: torch.device,
    ) -> None:
        self._shards = shards
        self._data = data
        self._grid = side // patch
        self._requests = requests
        self._depth = depth
        self._seed = seed
        self._is_training = is_training
        self._device = device
        self._source = SampleSource(
            shards,
            seed=seed,
            max_bad_share=data.max_bad_share,
            max_bad_run=data.max_bad_run,
            patience=data.read_patience,
        )
        self._reading: deque[tuple[_Request, list[Future[Sample]]]] = deque()
        self._decoding: deque[tuple[_Request, list[Sample], Windows]] = deque()
        self._pipeline = PicturePipeline(
            batch=batch,
            side=side,
            grid=self._grid,
            threads=data.threads,
            depth=depth,
            keeps_frame=side == shards.side
            and data.crop_to == "frame"
            and not (is_training and data.augments),
            device=device,
        )
        self._readers = ThreadPoolExecutor(data.readers, thread_name_prefix="xpt-read")
        self.wait_seconds = 0.0
        """Seconds that the caller has waited for batches."""

    @property
    def replaced(self) -> int:
        """Films replaced so far, those read ahead included."""
        return self._source.replaced

    @property
    def retries(self) -> int:
        """Reads that failed and were tried again so far."""
        return self._source.retries

    @property
    def faults(self) -> list[Fault]:
        """The first replacement of each damaged film."""
        return self._source.faults

    def __iter__(self) -> "BatchLoader":
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        self._fill()  # does nothing after the first batch
        if not self._decoding:
            raise StopIteration
        batch = self._take()
        self._fill()
        self.wait_seconds += time.perf_counter() - started
        return batch

    def close(self) -> None:
        """End the threads and close the files."""
        self._source.give_up()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._pipeline.close()
        self._source.close()

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        """Start reading, and decoding what is read, as far ahead as `depth` says."""
        in_flight = len(self._reading) + len(self._decoding)
        for request in islice(self._requests, 2 * self._depth - in_flight):
            films = zip(request.position_B.tolist(), request.row_B.tolist(), strict=True)
            reads = [self._readers.submit(self._source.fetch, position, row) for position, row in films]
            self._reading.append((request, reads))
        while self._reading and len(self._decoding) < self._depth:
            request, reads = self._reading.popleft()
            samples = [read.result() for read in reads]
            windows = self._windows(request, samples)
            self._pipeline.feed(samples, windows)
            self._decoding.append((request, samples, windows))

    def _windows(self, request: _Request, samples: list[Sample]) -> Windows:
        if self._data.crop_to == "chest":
            squares = chest_squares([sample.contour for sample in samples])
        else:
            squares = full_frames(len(samples))
        if not self._is_training:
            return squares
        return draw_windows(
            request.position_B,
            np.stack([sample.box_4 for sample in samples]),
            squares,
            stored_side=self._shards.side,
            seed=self._seed,
            crop_scale=self._data.crop_scale,
            flip=self._data.flip,
        )

    def _take(self) -> Batch:
        request, samples, windows = self._decoding.popleft()
        keys = [sample.key for sample in samples]
        try:
            image_BCHW, contour_BCC = self._pipeline.take()
        except RuntimeError as error:
            raise DataError(
                f"positions {request.position_B[0]} to {request.position_B[-1]}: DALI failed on the films "
                f"{', '.join(keys)}. Where it cannot decode one, that one was written damaged: find it with "
                f"xpt-shards verify {self._shards.root}. DALI says: {error}"
            ) from error
        is_stand_in_B = np.array([sample.is_stand_in for sample in samples])
        weight_B = request.weight_B if self._is_training else request.weight_B * ~is_stand_in_B
        is_valid_BL = valid_patches(
            windows,
            np.stack([sample.box_4 for sample in samples]),
            stored_side=self._shards.side,
            grid=self._grid,
        )
        chest_BL, lung_BL = coverage(contour_BCC)
        return Batch(
            image_BCHW=image_BCHW,
            chest_BL=chest_BL,
            lung_BL=lung_BL,
            is_valid_BL=self._to_device(is_valid_BL),
            position_B=self._to_device(request.position_B),
            weight_B=self._to_device(weight_B),
            window_B4=np.concatenate([windows.start_B2, windows.end_B2], axis=1),
            keys=keys,
            replaced=int(is_stand_in_B.sum()),
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        # From page-locked memory the copy does not wait for the device.
        return tensor.pin_memory().to(self._device, non_blocking=True)


def train_loader(
    shards: ShardSet,
    data: DataConfig,
    *,
    side: int,
    patch: int,
    seed: int,
    batch: int,
    world_size: int,
    rank: int,
    accumulation: int,
    start: int,
    device: torch.device,
    groups: Groups | None = None,
) -> BatchLoader:
    """Endless micro-batches of this rank, from position `start` (images that the job has consumed) on.

    With `groups`, each of those counts as one image, and a batch has all films of `batch` groups.

    `side` and `patch` are those of the model's input, in pixels; the side is a multiple of the patch.
    `batch` is the global batch; each step is `accumulation` micro-batches on each of `world_size` ranks.
    Raises ValueError where they do not divide it.
    """
    expect_random_reads(shards)
    sizes_S = shards.shard_sizes if groups is None else groups.sizes_S
    starts_S = np.cumsum(sizes_S) - sizes_S
    order = SampleOrder(sizes_S, seed=seed, window=data.window_shards)
    size = micro_batch_size(batch, world_size=world_size, accumulation=accumulation)

    def requests() -> Iterator[_Request]:
        for step in count():
            for micro_step in range(accumulation):
                position_B = start + rank_slice(
                    step,
                    batch,
                    world_size=world_size,
                    rank=rank,
                    micro_step=micro_step,
                    accumulation=accumulation,
                )
                located = order.locate(position_B)
                yield _Request(
                    position_B=position_B,
                    row_B=starts_S[located.shard_N] + located.index_N,
                    weight_B=np.ones(size, dtype=np.float32),
                ).of_groups(groups)

    return BatchLoader(
        shards,
        data,
        requests(),
        side=side,
        patch=patch,
        batch=size * _views(groups),
        depth=data.prefetch,
        seed=seed,
        is_training=True,
        device=device,
    )


def evaluation_loader(
    shards: ShardSet,
    data: DataConfig,
    *,
    side: int,
    patch: int,
    batch: int,
    seed: int = 0,
    world_size: int = 1,
    rank: int = 0,
    first: int = 0,
    films: int | None = None,
    device: torch.device = _CPU,
    groups: Groups | None = None,
) -> BatchLoader:
    """`films` films (None: all) from row `first` on, once each, whole, in index order, `batch` per forward.

    Every rank gets the same number of batches. `weight_B` is 0 for what fills the last one and for
    stand-ins of damaged films (drawn with `seed`). With `groups`, those are counted instead of films. Raises
    ValueError for fewer than one film.
    """
    there = len(shards if groups is None else groups) - first
    total = there if films is None else min(films, there)
    if total < 1:
        raise ValueError(f"evaluation films: got {films}, wanted at least 1")
    rows_FB, is_counted_FB = evaluation_positions(total, batch=batch, world_size=world_size, rank=rank)
    requests = (
        _Request(position_B=row_B, row_B=row_B, weight_B=is_counted_B.astype(np.float32)).of_groups(groups)
        for row_B, is_counted_B in zip(first + rows_FB, is_counted_FB, strict=True)
    )
    return BatchLoader(
        shards,
        data,
        requests,
        side=side,
        patch=patch,
        batch=batch * _views(groups),
        depth=min(data.prefetch, len(rows_FB)),
        seed=seed,
        is_training=False,
        device=device,
    )


def _views(groups: Groups | None) -> int:
    return 1 if groups is None else groups.rows_NV.shape[1]
