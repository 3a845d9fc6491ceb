"""Small trials for `xpt-doctor`: does the decoder work, and how fast do films come from the disk."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from xpt.data.crop import Windows
from xpt.data.index import ShardSet
from xpt.data.pipeline import PicturePipeline
from xpt.data.reader import DamagedSampleError, Sample, ShardReader

SIDE = 64


def decode_a_picture(device: torch.device) -> str:
    """Decode a PNG with the pipeline of training. Raises RuntimeError where other pixels come out."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    ok, png = cv2.imencode(".png", pixels)
    assert ok
    sample = Sample(key="trial", row=0, image=png, contour=png, box_4=np.array([0, 0, SIDE, SIDE]))
    pipeline = PicturePipeline(
        batch=1,
        side=SIDE,
        grid=4,
        threads=1,
        depth=1,
        keeps_frame=True,
        device=device if device.index is not None or device.type == "cpu" else torch.device("cuda", 0),
    )
    start, end = np.zeros((1, 2), dtype=np.float32), np.ones((1, 2), dtype=np.float32)
    pipeline.feed([sample], Windows(start_B2=start, end_B2=end))
    found = pipeline.take()[0][0, 0].cpu().numpy()
    pipeline.close()
    if not np.array_equal(found, pixels):
        raise RuntimeError("a PNG decodes to other pixels than were written")
    return f"a PNG decoded on {device.type}, pixel for pixel"


@dataclass(frozen=True, kw_only=True)
class ReadRate:
    films: int
    bytes: int
    seconds: float
    damaged: int

    @property
    def films_per_second(self) -> float:
        return self.films / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds


def read_rate(shards: ShardSet, *, threads: int, seconds: float) -> ReadRate:
    """Read films at random with `threads` threads for about `seconds`, checked as training checks them.

    What the page cache holds of the shards is asked for anew, as far as the system lets go of it.
    """
    for shard in range(len(shards.shard_names)):
        descriptor = os.open(shards.shard_path(shard), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    rows = np.random.default_rng(0).permutation(len(shards))
    reader = ShardReader(shards)
    started = time.monotonic()

    def read(thread: int) -> tuple[int, int, int]:
        films = size = damaged = 0
        for row in rows[thread::threads].tolist():
            if time.monotonic() - started > seconds:
                break
            try:
                sample = reader.read(row)
            except DamagedSampleError:
                damaged += 1
            else:
                size += sample.image.nbytes + sample.contour.nbytes
            films += 1
        return films, size, damaged

    with ThreadPoolExecutor(threads) as pool:
        counts = np.array(list(pool.map(read, range(threads))))
    elapsed = time.monotonic() - started
    reader.close()
    films, size, damaged = counts.sum(0).tolist()
    return ReadRate(films=films, bytes=size, seconds=max(elapsed, 1e-9), damaged=damaged)
