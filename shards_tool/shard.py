"""One worker makes one shard: read, decode, letterbox, encode, write. Nothing else decides its bytes."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from shards_tool.contour import ContourFinder, contour_finder
from shards_tool.dicom import read_dicom
from shards_tool.files import whole_file, write_whole
from shards_tool.film import Film, Grey, check_content
from shards_tool.headers import sniff
from shards_tool.ledger import LeftOut, Planned, ShardFile
from shards_tool.letterbox import letterbox, letterbox_contour
from shards_tool.picture import read_picture
from shards_tool.privacy import keyed_hash
from shards_tool.scan import named_path, plain
from shards_tool.schema import INDEX_DTYPE, SampleRecord, shard_name
from shards_tool.tar import Member, TarWriter, idx_text
from shards_tool.workers import Step

PNG_COMPRESSION = 3
"""zlib level: higher ones cost several times the time for a few percent of a noisy film's size."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    split: str
    number: int
    plan: str
    """SHA-256 of all that decides this shard."""
    samples: list[Planned]
    crashed: frozenset[str] = frozenset()
    """Keys of films that are not to be tried again."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    file: ShardFile
    rows: list[tuple[bytes, str]]
    """Index entry and record of each sample, in the order of the tar."""
    failures: list[LeftOut]


@dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """What a worker needs to write shards; picklable."""

    roots: tuple[Path, ...]
    out: Path
    key: bytes
    side: int
    format: Literal["jpeg", "png16"]
    quality: int
    contour: str

    def __call__(self, task: ShardTask, step: Step) -> ShardResult:
        """Write `shard-NNNNNN.tar` and `.idx` under their final names, or nothing if no film can be read.

        Raises:
            OSError: the output cannot be written, or a whole source has gone away.
        """
        cv2.setNumThreads(1)  # the processes are the parallelism
        finder = contour_finder(self.contour)
        rows: list[tuple[bytes, str]] = []
        failures: list[LeftOut] = []
        members: list[list[Member]] = []
        path = self.out / task.split / shard_name(task.number)
        with whole_file(path) as file:
            tar = TarWriter(file)
            for planned in task.samples:
                step(planned.key)
                try:
                    if planned.key in task.crashed:
                        raise ValueError("two workers died decoding it")
                    image, contour, record = self._make(planned, finder)
                except Exception as error:
                    # Decoders raise nearly anything on damaged input; it costs this film only.
                    self._check_source(planned, error)
                    failures.append(_failure(planned, error))
                    continue
                text = json.dumps(dataclasses.asdict(record), ensure_ascii=False, sort_keys=True)
                suffix = "jpg" if self.format == "jpeg" else "png"
                files = {suffix: image, "contour.png": contour, "json": text.encode()}
                members.append(
                    [tar.add(f"{planned.key}.{suffix}", content) for suffix, content in files.items()]
                )
                rows.append((index_entry(record, task.number, members[-1]).tobytes(), text))
            sha256 = tar.finish()
        if rows:
            write_whole(path.with_suffix(".idx"), idx_text(members).encode())
        else:
            path.unlink()
        written = ShardFile(
            split=task.split,
            number=task.number,
            plan=task.plan,
            samples=len(rows),
            bytes=tar.bytes if rows else 0,
            sha256=sha256 if rows else "",
        )
        return ShardResult(file=written, rows=rows, failures=failures)

    def _make(self, planned: Planned, finder: ContourFinder) -> tuple[bytes, bytes, SampleRecord]:
        content = (self.roots[planned.source] / planned.path).read_bytes()
        if keyed_hash(self.key, "file", hashlib.sha256(content).hexdigest()) != planned.digest:
            raise ValueError("the file changed during the build")
        film = read_film(content)
        contour = finder(film.pixels_HW, named_path(self.roots[planned.source], planned.path))
        canvas_HW, box = letterbox(film.pixels_HW, self.side)
        height, width = film.pixels_HW.shape
        record = SampleRecord(
            key=planned.key,
            patient=planned.patient,
            study=planned.study,
            view=planned.view,
            age=planned.age,
            sex=planned.sex,
            labels=planned.labels,
            reports=planned.reports,
            original_height=height,
            original_width=width,
            bits_stored=film.bits_stored,
            photometric=film.photometric,
            window=film.window,
            box=box.as_tuple(),
            contour=contour.method,
            source_sha256=planned.digest,
        )
        image = encode_jpeg(canvas_HW, self.quality) if self.format == "jpeg" else encode_png16(canvas_HW)
        return image, _encode(letterbox_contour(contour.mask_HW, self.side), ".png", []), record

    def _check_source(self, planned: Planned, error: Exception) -> None:
        """A film that cannot be opened is one film; a source that is gone must not empty the data set."""
        if isinstance(error, OSError) and not self.roots[planned.source].exists():
            raise OSError(error.errno, "source is gone", str(self.roots[planned.source])) from error


def read_film(content: bytes) -> Film:
    """Read the bytes of a DICOM, PNG or JPEG file.

    Raises:
        ValueError: not a film.
        Exception: of many kinds, from the decoders, for a damaged file.
    """
    film = read_picture(content) if sniff(content[:132]) in ("png", "jpeg") else read_dicom(content)
    check_content(film.pixels_HW)
    return film


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


def encode_jpeg(pixels_HW: Grey, quality: int) -> bytes:
    if pixels_HW.dtype == np.uint16:
        pixels_HW = cv2.convertScaleAbs(pixels_HW, alpha=1 / 257)
    return _encode(pixels_HW, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png16(pixels_HW: Grey) -> bytes:
    if pixels_HW.dtype == np.uint8:
        pixels_HW = pixels_HW.astype(np.uint16) * 257
    return _encode(pixels_HW, ".png", [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])


def _encode(pixels_HW: Grey, suffix: str, options: list[int]) -> bytes:
    done, code = cv2.imencode(suffix, pixels_HW, options)
    assert done
    return code.tobytes()


def _failure(planned: Planned, error: Exception) -> LeftOut:
    if isinstance(error, OSError) and error.strerror:
        reason = f"cannot be read: {error.strerror}"
    elif isinstance(error, MemoryError):
        reason = "needs more memory than there is"
    else:
        reason = plain(error)
    return LeftOut(
        source=planned.source, path=planned.path, reason=reason, transfer_syntax=planned.transfer_syntax
    )
