"""Read films by their place in the index, and put another in place of one that is damaged.

A film is two positioned reads, at offsets that the index holds; the tar around them is never parsed.
Everything that could stop the decoder is checked here: CRC-32, header, content box. What fails is
replaced by rule (`order.reserve`), logged once, counted, and past a limit it stops the run: never a
crash on the first damaged film, never a silent skip, never an endless search.

A file system that does not answer for a while damages no film: the read is tried again, ever more
slowly, and past `data.read_patience` the run stops. Whether it answers is judged by the manifest.
"""

import dataclasses
import logging
import os
import threading
import time
import weakref
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from shards_tool import schema
from xpt.data.header import check_picture
from xpt.data.index import ShardSet
from xpt.data.order import reserve

_log = logging.getLogger(__name__)

# More than the shards of two windows of the order, and far below the usual limit of 1,024 open files.
_OPEN_SHARDS = 128
# An index entry that asks for more is damaged: a 16-bit PNG of noise has 2 bytes per pixel.
_MOST_BYTES_PER_PIXEL = 3
_HEADER_ALLOWANCE = 1 << 16
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 15.0  # seconds between two tries of a read
# The share of damaged films is judged as if at least this many had been read.
_FEWEST_READ = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One film as stored, checked, not decoded."""

    key: str
    row: int
    image: UInt8[np.ndarray, "N"]
    contour: UInt8[np.ndarray, "M"]
    box_4: Int64[np.ndarray, "4"]
    """Content inside the frame: top, left, bottom, right (exclusive), pixels of the stored image."""
    is_stand_in: bool = False
    """True where it replaces a damaged film."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A film that was replaced."""

    position: int
    key: str
    shard: str
    reason: str


class DataError(RuntimeError):
    """The data are in a state that training should not go on with; the message says what to do."""


class DamagedSampleError(Exception):
    """A film that cannot be used; the message is the reason."""


class ShardReader:
    """Reads samples of one split. Threads may share it."""

    def __init__(self, shards: ShardSet, *, patience: float = 0.0) -> None:
        """A read that fails is tried again for `patience` seconds."""
        self._shards = shards
        self._patience = patience
        self._contour_side = shards.side // schema.CONTOUR_SCALE
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self.retries = 0
        """Reads that failed and were tried again."""

    def read(self, row: int) -> Sample:
        """The sample at `row` of the index.

        Raises DamagedSampleError with the reason, or DataError where the file system does not answer.
        """
        record = self._shards.rows[row]
        side = self._shards.side
        top, left, bottom, right = record["box"].tolist()
        if not (0 <= top < bottom <= side and 0 <= left < right <= side):
            raise DamagedSampleError(f"content box {top, left, bottom, right} is not inside {side} x {side}")
        image = self._read_picture(row, record, "image", side)
        contour = self._read_picture(row, record, "contour", self._contour_side)
        return Sample(
            key=record["key"].decode("ascii", errors="replace"),
            row=row,
            image=np.frombuffer(image, dtype=np.uint8),
            contour=np.frombuffer(contour, dtype=np.uint8),
            box_4=record["box"].astype(np.int64),
        )

    def shard_of(self, row: int) -> int:
        """Place of the row's shard in the split's list."""
        return int(np.searchsorted(self._shards.row_starts, row, side="right")) - 1

    def give_up(self) -> None:
        """Reads that are waiting for the file system fail at once."""
        self._is_closing.set()

    def close(self) -> None:
        self.give_up()
        with self._lock:
            self._open.clear()

    def _read_picture(self, row: int, record: np.void, part: str, side: int) -> bytes:
        size, offset = int(record[f"{part}_size"]), int(record[f"{part}_offset"])
        most = _MOST_BYTES_PER_PIXEL * side * side + _HEADER_ALLOWANCE
        if size > most:
            raise DamagedSampleError(f"{part}: index says {size} bytes, more than {most}")
        shard = self.shard_of(row)
        end, length = offset + size, int(self._shards.shard_bytes[shard])
        if end > length:
            raise DamagedSampleError(f"{part}: index says up to byte {end}, the shard has {length}")
        try:
            data = self._patiently(shard, size, offset)
        except OSError as error:
            raise DamagedSampleError(f"{part}: {type(error).__name__}, {error}") from error
        if len(data) != size:
            raise DamagedSampleError(f"{part}: shard ends early, got {len(data)} bytes, wanted {size}")
        if zlib.crc32(data) != record[f"{part}_crc32"]:
            raise DamagedSampleError(f"{part}: bytes differ from those written (CRC-32)")
        try:
            check_picture(data, side=side)
        except ValueError as error:
            raise DamagedSampleError(f"{part}: {error}") from error
        return data

    def _patiently(self, shard: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes of the shard.

        Raises OSError where this shard alone cannot be read, DataError where the file system is away.
        """
        started, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return self._open_shard(shard).read(size, offset)
            except OSError as error:
                path, waited = self._shards.shard_path(shard), time.monotonic() - started
                with self._lock:
                    self._open.pop(shard, None)  # a stale handle stays stale
                    self.retries += 1
                    retries = self.retries
                if isinstance(error, FileNotFoundError) and self._answers():
                    raise
                if waited + pause > self._patience or self._is_closing.is_set():
                    if self._answers():
                        raise
                    raise DataError(
                        f"{path}: {error.strerror or error}, for {waited:.0f} s, and {schema.MANIFEST} "
                        "cannot be read either. Mend the file system and run the same command, which goes "
                        "on from the last checkpoint; --data.read_patience sets how long it waits."
                    ) from error
                if pause == _FIRST_PAUSE:
                    _log.warning("%s: %s; trying again (%d so far)", path, error.strerror or error, retries)
            self._is_closing.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _answers(self) -> bool:
        """Whether the file system that holds the data set can be read at all."""
        try:
            with (self._shards.root / schema.MANIFEST).open("rb") as file:
                return len(file.read(1)) == 1
        except OSError:
            return False

    def _open_shard(self, shard: int) -> "_OpenShard":
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        # Outside the lock: opening may take long on a network file system.
        opened = _OpenShard(self._shards.shard_path(shard))
        with self._lock:
            self._open[shard] = opened
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return opened


class _OpenShard:
    """A file descriptor that closes when the last thread that reads from it lets go."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        # A method, so that `self` is held while reading: a descriptor that is closed meanwhile may
        # already be another file's.
        return os.pread(self._descriptor, size, offset)


class SampleSource:
    """The film for a position: the planned one, or its stand-in by rule. Threads may share it."""

    def __init__(
        self, shards: ShardSet, *, seed: int, max_bad_share: float, max_bad_run: int, patience: float
    ) -> None:
        self._reader = ShardReader(shards, patience=patience)
        self._shards = shards
        self._seed = seed
        self._max_bad_share = max_bad_share
        self._max_bad_run = max_bad_run
        self._lock = threading.Lock()
        self._known_bad: set[int] = set()
        self.read_count = 0
        self.replaced = 0
        """Reads that were replaced, the same film counting each time."""
        self.faults: list[Fault] = []
        """The first replacement of each damaged film."""

    def fetch(self, position: int, row: int) -> Sample:
        """The sample at `row`, or the first stand-in for `position` that can be read.

        Raises DataError where too many are damaged, or where the file system does not answer.
        """
        fault = None
        for attempt in range(self._max_bad_run):
            try:
                sample = self._reader.read(row)
            except DamagedSampleError as error:
                fault = self._record(position, row, str(error))
                row = reserve(self._seed, position, attempt, len(self._shards))
            else:
                with self._lock:
                    self.read_count += 1
                return dataclasses.replace(sample, is_stand_in=attempt > 0)
        raise DataError(
            f"position {position}: {self._max_bad_run} films in a row were damaged, the last: {fault}; "
            f"{self._remedy()}"
        )

    @property
    def retries(self) -> int:
        """Reads that failed and were tried again."""
        return self._reader.retries

    def give_up(self) -> None:
        """Reads that are waiting for the file system fail at once."""
        self._reader.give_up()

    def close(self) -> None:
        self._reader.close()

    def _record(self, position: int, row: int, reason: str) -> Fault:
        """Log and count a damaged film; raises DataError past the allowed share."""
        fault = Fault(
            position=position,
            key=self._shards.rows[row]["key"].decode("ascii", errors="replace"),
            shard=self._shards.shard_names[self._reader.shard_of(row)],
            reason=reason,
        )
        with self._lock:
            self.read_count += 1
            self.replaced += 1
            read, replaced = self.read_count, self.replaced
            is_new = row not in self._known_bad
            if is_new:
                self._known_bad.add(row)
                self.faults.append(fault)
        if is_new:
            _log.warning("film %s in %s replaced: %s", fault.key, fault.shard, fault.reason)
        if replaced > self._max_bad_share * max(read, _FEWEST_READ):
            raise DataError(
                f"{replaced} of {read} films read were damaged, more than the allowed share "
                f"{self._max_bad_share}, the last: {fault}; {self._remedy()}"
            )
        return fault

    def _remedy(self) -> str:
        return (
            f"check the file system, then: xpt-shards verify {self._shards.root}; build the damaged shards "
            "again, or raise data.max_bad_share and data.max_bad_run to train without them"
        )
