"""Input that does harm: nothing crashes, nothing is written elsewhere, all is accounted for."""

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from shards_tool.build import build
from shards_tool.schema import QUARANTINE, SAMPLES
from shards_tool.verify import verify
from tests.shards_tool.archive import SMALL, dataset_of, picture, twelve_bit, write_dicom, write_key

MEMORY = 3 * 2**30
"""Address space that a build of small films must manage with, whatever they claim to be."""


def png(width: int, height: int, data: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """An 8-bit grey PNG that claims this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", data), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def zeros(count: int) -> bytes:
    """zlib's form of so many zero bytes, made without holding them."""
    packer = zlib.compressobj(1)
    blocks = (bytes(min(2**20, count - start)) for start in range(0, count, 2**20))
    return b"".join(map(packer.compress, blocks)) + packer.flush()


def deflated_bomb() -> bytes:
    """A DICOM file of a megabyte that unpacks to more than any film has."""
    dataset = dataset_of(twelve_bit(0))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    whole = file.getvalue()
    end = 144 + struct.unpack("<I", whole[140:144])[0]
    inside = zlib.decompress(whole[end:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    private = struct.pack("<HH2sHI", 0x0019, 0x1001, b"OB", 0, 2**28 + 2**20)
    at = inside.index(struct.pack("<HH", 0x0020, 0x000D))
    packed = packer.compress(inside[:at] + private)
    packed += b"".join(packer.compress(bytes(2**20)) for _ in range(2**8 + 1))
    return whole[:end] + packed + packer.compress(inside[at:]) + packer.flush()


def write_hostile(root: Path) -> None:
    root.mkdir()
    cv2.imwrite(str(root / "good.png"), picture(1))
    (root / "pixels 100000 x 100000.png").write_bytes(png(100_000, 100_000, zeros(100)))
    (root / "pixels 2e9.png").write_bytes(png(2_000_000_000, 1, zeros(100)))
    (root / "bomb.png").write_bytes(png(10_000, 10_000, zeros(10_001 * 10_000)))
    (root / "too much data.png").write_bytes(png(100, 100, zeros(2**27)))
    (root / "text bomb.png").write_bytes(png(100, 100, zeros(10_100), (b"zTXt", b"a\0\0" + zeros(2**26))))
    (root / "profile bomb.png").write_bytes(png(100, 100, zeros(10_100), (b"iCCP", b"a\0\0" + zeros(2**26))))
    jpeg = bytearray(cv2.imencode(".jpg", picture(2))[1].tobytes())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    (root / "pixels 65500.jpg").write_bytes(bytes(jpeg))
    (root / "deflated.dcm").write_bytes(deflated_bomb())
    write_dicom(root / "rows.dcm", twelve_bit(3), seed=3)
    content = (root / "rows.dcm").read_bytes()
    rows = struct.pack("<HH2sHH", 0x0028, 0x0010, b"US", 2, 96)
    assert rows in content
    (root / "rows.dcm").write_bytes(content.replace(rows, rows[:-2] + struct.pack("<H", 65_535)))
    write_dicom(root / "frames.dcm", twelve_bit(4), seed=4, NumberOfFrames=2_000_000_000)
    write_dicom(root / "rle.dcm", twelve_bit(5), seed=5, syntax=RLELossless)
    content = bytearray((root / "rle.dcm").read_bytes())
    content[-2000:] = b"\x81" * 2000  # runs beyond the end of every segment
    (root / "rle.dcm").write_bytes(bytes(content))
    for name in ("evil.pkl", "evil.npy", "evil.dcm", "evil"):
        (root / name).write_bytes(pickle.dumps(Evil(str(root.parent / "unpickled"))))
    (root / "loop").symlink_to(root / "loop")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / "folder").symlink_to(root.parent)
    (root / "device").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.dcm")


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def test_hostile_files_neither_crash_a_build_nor_exhaust_its_memory_nor_write_elsewhere(tmp_path: Path):
    archive, data = tmp_path / "archive", tmp_path / "data"
    write_hostile(archive)
    inputs = len(list(archive.iterdir()))
    before = {path.name for path in tmp_path.iterdir()} | {"data"}
    key_file = write_key(tmp_path / "key")
    options = ["--side", "64", "--workers", "1", "--key-file", str(key_file), "--fractions", "1", "0", "0"]
    code = "from shards_tool.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "build", str(archive), "--out", str(data), *options],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    assert run.returncode == 0, run.stderr
    assert {path.name for path in tmp_path.iterdir()} == before | {"key"}
    left_out = {row["path"]: row["reason"] for row in pq.read_table(data / QUARANTINE).to_pylist()}
    samples = pq.read_table(data / SAMPLES).num_rows
    assert verify(data, workers=0).faults == [] and samples + len(left_out) == inputs
    good = {path.name for path in archive.iterdir()} - set(left_out)
    # The pictures inside a text, profile or too much data are as good as any.
    assert "good.png" in good
    assert good <= {"good.png", "too much data.png", "text bomb.png", "profile bomb.png"}
    for name, word in {
        "pixels 100000 x 100000.png": "pixels",
        "pixels 2e9.png": "pixels",
        "pixels 65500.jpg": "pixels",
        "bomb.png": "every pixel has the value 0",
        "deflated.dcm": "unpacks to more than",
        "frames.dcm": "2000000000 frames",
        "evil.npy": "not a DICOM",
        "loop": "not a regular file",
        "gone.png": "not a regular file",
        "folder": "link to a folder, not followed",
        "device": "not a regular file",
        "pipe.dcm": "not a regular file",
    }.items():
        assert word in left_out[name], (name, left_out[name])


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm", "rle.dcm"])
def test_cut_and_flipped_files_are_a_film_or_in_quarantine(tmp_path: Path, key_file: Path, kind: str):
    archive = tmp_path / "archive"
    source = tmp_path / f"film.{kind}"
    if kind == "dcm":
        write_dicom(source, twelve_bit(1))
    elif kind == "rle.dcm":
        write_dicom(source, twelve_bit(1), syntax=RLELossless)
    else:
        cv2.imwrite(str(source), picture(1))
    whole = source.read_bytes()
    rng = np.random.default_rng(0)
    archive.mkdir()
    (archive / f"whole.{kind}").write_bytes(whole)
    for at in np.unique(np.geomspace(1, len(whole) - 1, 25).astype(int)).tolist():
        (archive / f"cut {at}.{kind}").write_bytes(whole[:at])
    for number in range(60):
        flipped = bytearray(whole)
        # Half of the flips hit the header, where they do most.
        for at in rng.integers(0, len(whole) if number % 2 else min(len(whole), 700), 3).tolist():
            flipped[at] ^= 1 << int(rng.integers(8))
        (archive / f"flipped {number}.{kind}").write_bytes(bytes(flipped))
    summary = build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    assert summary.inputs == len(list(archive.iterdir())) and summary.samples >= 1
    assert verify(tmp_path / "data", workers=0).faults == []
