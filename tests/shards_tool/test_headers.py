import struct

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import JPEG2000Lossless

from shards_tool.headers import check_size, codestream_size, describe, sniff
from tests.shards_tool.archive import dataset_of, picture, twelve_bit


def encoded(suffix: str) -> bytes:
    done, code = cv2.imencode(suffix, picture(0, 96, 80))
    assert done
    return code.tobytes()


def test_kinds_are_told_by_content():
    assert sniff(encoded(".png")) == "png"
    assert sniff(encoded(".jpg")) == "jpeg"
    assert sniff(b"\0" * 128 + b"DICM") == "dicom"
    assert sniff(b"PK\x03\x04") == sniff(b"") == ""


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"", "empty"),
        (b"II*\0", "TIFF"),
        (b"PK\x03\x04", "zip"),
        (b"\0" * 257 + b"ustar\0", "tar"),
        (b"\x01\x02", "01 02"),
    ],
)
def test_what_is_not_read_is_named(head: bytes, word: str):
    assert word in describe(head)


def test_size_is_found_in_jpeg_and_jpeg_2000_codestreams():
    assert codestream_size(encoded(".jpg")) == (96, 80)
    dataset = dataset_of(twelve_bit(0))
    dataset.compress(JPEG2000Lossless)
    assert codestream_size(next(generate_frames(dataset.PixelData, number_of_frames=1))) == (96, 80)


@pytest.mark.realdata
def test_size_is_found_in_every_compressed_real_film(cxr):
    found = 0
    for path in sorted((cxr / "dicom").glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        if dataset.file_meta.TransferSyntaxUID.name == "RLE Lossless":
            continue
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        assert codestream_size(frame) == (dataset.Rows, dataset.Columns), path.name
        found += 1
    assert found == 11


@pytest.mark.parametrize(
    "code", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\x4f\xff\x51\0", b"\xff\xd8\xff\xc0\0\0"]
)
def test_cut_headers_have_no_size(code: bytes):
    assert codestream_size(code) is None


def test_any_damage_to_a_header_gives_a_size_or_none():
    rng = np.random.default_rng(0)
    for code in (encoded(".jpg"), b"\xff\x4f\xff\x51" + struct.pack(">H9I", 41, *range(9))):
        for _ in range(300):
            damaged = bytearray(code[: rng.integers(0, len(code))])
            for at in rng.integers(0, max(1, len(damaged)), 4):
                if damaged:
                    damaged[at % len(damaged)] = rng.integers(256)
            size = codestream_size(bytes(damaged))
            assert size is None or len(size) == 2


def test_sizes_that_are_no_film_are_refused():
    check_size(8600, 8600)
    with pytest.raises(ValueError, match="100000 x 100000"):
        check_size(100_000, 100_000)
    with pytest.raises(ValueError, match="at least 64"):
        check_size(2000, 63)
