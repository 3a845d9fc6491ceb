"""One worker makes one shard, from films that lie ready in packs. Nothing else decides its bytes."""

import contextlib
import dataclasses
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from shards_tool.files import whole_file, write_whole
from shards_tool.ledger_rows import Piece, Planned, ShardFile
from shards_tool.schema import INDEX_DTYPE, MOST_RECORD_BYTES, SampleRecord, shard_name
from shards_tool.settings import BuildStoppedError
from shards_tool.tar import Member, TarWriter, idx_text
from shards_tool.workers import Step


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    split: str
    number: int
    plan: str
    """SHA-256 of all that decides this shard."""
    samples: list["Stored"]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A sample, and where its pictures are copied from."""

    record: SampleRecord
    file: str
    """Relative to the folder of the writer."""
    image: Piece
    contour: Piece


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    file: ShardFile
    rows: list[tuple[bytes, str]]
    """Index entry and record of each sample, in the order of the tar."""


@dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """What a worker needs to write shards; picklable."""

    out: Path
    pieces: Path
    """Folder that the files with the pictures are relative to."""
    format: Literal["jpeg", "png16"]

    def __call__(self, task: ShardTask, step: Step) -> ShardResult:
        """Write `shard-NNNNNN.tar` and `.idx` under their final names.

        Raises:
            OSError: the output cannot be written.
            BuildStoppedError: a film in a pack is no longer what was written there.
        """
        rows: list[tuple[bytes, str]] = []
        members: list[list[Member]] = []
        path = self.out / task.split / shard_name(task.number)
        suffix = "jpg" if self.format == "jpeg" else "png"
        with whole_file(path) as file, contextlib.ExitStack() as stack:
            tar = TarWriter(file)
            files = _OpenFiles(self.pieces, stack)
            for sample in task.samples:
                key = sample.record.key
                step(key)
                text = record_text(sample.record)
                image = tar.add(f"{key}.{suffix}", files.read(sample.file, sample.image))
                contour = tar.add(f"{key}.contour.png", files.read(sample.file, sample.contour))
                members.append([image, contour, tar.add(f"{key}.json", text.encode())])
                rows.append((index_entry(sample.record, task.number, members[-1]).tobytes(), text))
            sha256 = tar.finish()
        write_whole(path.with_suffix(".idx"), idx_text(members).encode())
        written = ShardFile(
            split=task.split,
            number=task.number,
            plan=task.plan,
            samples=len(rows),
            bytes=tar.bytes,
            sha256=sha256,
        )
        return ShardResult(file=written, rows=rows)


class _OpenFiles:
    """The pictures of a shard come from many files."""

    _MOST = 128

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._open: dict[str, BinaryIO] = {}

    def read(self, name: str, piece: Piece) -> bytes:
        if name not in self._open:
            if len(self._open) == self._MOST:
                for file in self._open.values():
                    file.close()
                self._open.clear()
            self._open[name] = self._stack.enter_context((self._folder / name).open("rb"))
        file = self._open[name]
        file.seek(piece.offset)
        content = file.read(piece.size)
        if zlib.crc32(content) != piece.crc32:
            raise BuildStoppedError(
                f"{self._folder / name} is damaged at byte {piece.offset}: it is not what was written there"
            )
        return content


def record_of(planned: Planned, facts: str) -> SampleRecord:
    """The record of a film: what the plan says of it, and what its pixels say."""
    names = {field.name for field in dataclasses.fields(SampleRecord)}
    said = {name: value for name, value in vars(planned).items() if name in names}
    seen = json.loads(facts)
    return SampleRecord(**said, source_sha256=planned.digest, **seen | {"box": tuple(seen["box"])})


def record_text(record: SampleRecord) -> str:
    """The content of its `KEY.json`. Raises ValueError where that would be larger than the format allows."""
    text = json.dumps(dataclasses.asdict(record), ensure_ascii=False, sort_keys=True)
    if len(text.encode()) > MOST_RECORD_BYTES:
        raise ValueError(f"{record.key}: its record has {len(text.encode())} bytes; shorten its report")
    return text


def index_entry(record: SampleRecord, shard: int, members: list[Member]) -> np.void:
    """The sample's element of `index.npy`; members are image, contour and JSON."""
    image, contour, text = members
    entry = np.zeros(1, dtype=INDEX_DTYPE)
    entry[0] = (
        record.key.encode(),
        shard,
        *(image.offset, image.size, image.crc32),
        *(contour.offset, contour.size, contour.crc32),
        *(text.offset, text.size, text.crc32),
        record.box,
    )
    return entry[0]
