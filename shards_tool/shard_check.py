"""Checking one shard against manifest, index and format: every byte, every picture, every record."""

import contextlib
import hashlib
import mmap
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards_tool.schema import (
    CONTOUR_CHEST,
    CONTOUR_LUNG,
    CONTOUR_OUTSIDE,
    CONTOUR_SCALE,
    INDEX,
    INDEX_DTYPE,
    MOST_RECORD_BYTES,
    SAMPLES,
    parse_json,
    validate_record,
)
from shards_tool.shard import index_entry
from shards_tool.tables import sample_table
from shards_tool.tar import Member, idx_text
from shards_tool.workers import Step

MAX_SHOWN = 20
"""Faults kept per shard: a shard of another build would otherwise fill pages."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    where: str
    """File relative to the data set."""
    key: str
    """Of the sample, or ""."""
    what: str


@dataclass(frozen=True, kw_only=True)
class ShardCheck:
    """What a worker needs to check one shard."""

    root: Path
    split: str
    name: str
    number: int
    samples: int
    bytes: int
    sha256: str
    first_row: int
    """Of its samples in the split's index."""
    row_group: int
    """Of its samples in the samples table."""
    side: int
    format: str
    pictures: bool
    """Whether to decode them."""


@contextlib.contextmanager
def open_shard(check: ShardCheck) -> Iterator[tuple[dict[str, list[Member]], mmap.mmap]]:
    """The files of a sound shard by sample, and its bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: its bytes are not those that the manifest names.
    """
    with (check.root / check.split / check.name).open("rb") as file:
        if os.fstat(file.fileno()).st_size != check.bytes:
            raise ValueError("its size differs from the manifest's")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if hashlib.sha256(content).hexdigest() != check.sha256:
                raise ValueError("SHA-256 differs from the manifest's")
            yield _members(content), content


def check_shard(check: ShardCheck, step: Step) -> list[Fault]:
    """Every fault of one shard, up to `MAX_SHOWN`."""
    where = f"{check.split}/{check.name}"
    faults = []
    for fault in _shard_faults(check, where, step):
        faults.append(fault)
        if len(faults) == MAX_SHOWN:
            faults.append(Fault(where=where, key="", what="and more"))
            break
    return faults


def _shard_faults(check: ShardCheck, where: str, step: Step) -> Iterator[Fault]:
    try:
        file = (check.root / check.split / check.name).open("rb")
    except OSError as error:
        yield Fault(where=where, key="", what=f"cannot be read: {error.strerror}")
        return
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            yield Fault(where=where, key="", what="empty")
            return
        # Mapped, so that checking a shard of lossless films takes no more memory than one of them.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield from _content_faults(check, where, content, step)


def _content_faults(check: ShardCheck, where: str, content: mmap.mmap, step: Step) -> Iterator[Fault]:
    if len(content) != check.bytes:
        yield Fault(where=where, key="", what=f"{len(content)} bytes, the manifest says {check.bytes}")
    if hashlib.sha256(content).hexdigest() != check.sha256:
        yield Fault(where=where, key="", what="SHA-256 differs from the manifest's")
    try:
        samples = _members(content)
    except (tarfile.TarError, ValueError) as error:
        yield Fault(where=where, key="", what=f"damaged tar: {error}")
        return
    yield from _check_idx(check, samples)
    if len(samples) != check.samples:
        yield Fault(where=where, key="", what=f"{len(samples)} samples, the manifest says {check.samples}")
        return
    entries = _index_entries(check)
    records = []
    for place, (key, members) in enumerate(samples.items()):
        step(key)
        try:
            record = _check_sample(check, key, members, content)
        except ValueError as error:
            yield Fault(where=where, key=key, what=str(error))
            continue
        records.append(record)
        if entries is not None:
            expected = index_entry(validate_record(record), check.number, members)
            differing = [
                name for name, *_ in INDEX_DTYPE if not np.array_equal(entries[place][name], expected[name])
            ]
            if differing:
                yield Fault(
                    where=f"{check.split}/{INDEX}",
                    key=key,
                    what=f"{', '.join(differing)} differ from the tar",
                )
    if entries is None:
        yield Fault(where=f"{check.split}/{INDEX}", key="", what=f"has no rows for {check.name}")
    if len(records) == check.samples and not _is_in_samples_table(check, records):
        yield Fault(where=SAMPLES, key="", what=f"its rows for {where} differ from the records in the tar")


def _members(content: mmap.mmap) -> dict[str, list[Member]]:
    """Files of a tar by sample, in their order."""
    samples: dict[str, list[Member]] = {}
    content.seek(0)
    with tarfile.open(fileobj=cast(IO[bytes], content), mode="r:") as tar:
        for info in tar:
            end = info.offset_data + info.size
            if not info.isreg() or end > len(content):
                raise ValueError(f"{info.name} is no file, or cut off")
            crc32 = zlib.crc32(content[info.offset_data : end])
            member = Member(name=info.name, offset=info.offset_data, size=info.size, crc32=crc32)
            samples.setdefault(info.name.split(".", 1)[0], []).append(member)
    if content[-2 * tarfile.BLOCKSIZE :] != b"\0" * (2 * tarfile.BLOCKSIZE):
        raise ValueError("no end-of-archive mark: cut off")
    return samples


def _check_idx(check: ShardCheck, samples: dict[str, list[Member]]) -> Iterator[Fault]:
    name = f"{check.split}/{check.name[:-4]}.idx"
    path = check.root / name
    if not path.is_file():
        yield Fault(where=name, key="", what="missing")
    elif path.read_bytes() != idx_text(list(samples.values())).encode():
        yield Fault(where=name, key="", what="differs from the tar")


def _index_entries(check: ShardCheck) -> np.ndarray | None:
    """The shard's rows of the split's index; None where there are none."""
    try:
        index = np.load(check.root / check.split / INDEX, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    entries = index[check.first_row : check.first_row + check.samples]
    return entries if index.dtype == np.dtype(INDEX_DTYPE) and len(entries) == check.samples else None


def _check_sample(check: ShardCheck, key: str, members: list[Member], content: mmap.mmap) -> dict:
    """The sample's record; raises ValueError for a fault."""
    suffix = "jpg" if check.format == "jpeg" else "png"
    names = [member.name for member in members]
    if names != [f"{key}.{suffix}", f"{key}.contour.png", f"{key}.json"]:
        raise ValueError(f"wanted image, contour and JSON, got {', '.join(names)}")
    if check.pictures:
        _check_pictures(check, *(content[m.offset : m.offset + m.size] for m in members[:2]))
    text = content[members[2].offset : members[2].offset + members[2].size]
    content_of_json = parse_json(text, MOST_RECORD_BYTES)
    record = validate_record(content_of_json)
    if record.key != key:
        raise ValueError(f"its record is that of {record.key}")
    if max(record.box[2:]) > check.side:
        raise ValueError(f"box {record.box} lies outside the image")
    return content_of_json


def _check_pictures(check: ShardCheck, image: bytes, contour: bytes) -> None:
    _decoded(image, "image", check.side, np.uint8 if check.format == "jpeg" else np.uint16)
    contour_HW = _decoded(contour, "contour", check.side // CONTOUR_SCALE, np.uint8)
    if not np.isin(contour_HW, (CONTOUR_OUTSIDE, CONTOUR_CHEST, CONTOUR_LUNG)).all():
        raise ValueError("the contour has other values than 0, 128 and 255")


def _decoded(code: bytes, what: str, side: int, dtype: type[np.generic]) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"the {what} does not decode")
    if pixels.shape != (side, side) or pixels.dtype != dtype:
        raise ValueError(
            f"the {what} is {pixels.shape} {pixels.dtype}, wanted ({side}, {side}) {np.dtype(dtype)}"
        )
    return pixels


def _is_in_samples_table(check: ShardCheck, records: list[dict]) -> bool:
    try:
        rows = pq.ParquetFile(check.root / SAMPLES).read_row_group(check.row_group)
    except (OSError, pa.ArrowException):
        return False
    return rows.equals(sample_table(check.split, check.number, records))
