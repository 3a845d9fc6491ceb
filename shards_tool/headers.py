"""What the first bytes of a file say: its kind, and its size in pixels before anything is allocated."""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

MAX_PIXELS = 120_000_000
"""A 43 cm film at 40 um has 116 million; a larger header is taken for damage or an attack."""
MIN_SIDE = 64
"""A smaller picture is a thumbnail or an icon."""
SNIFF_BYTES = 132
MAX_INFLATED_BYTES = 2**28
"""Of a deflated DICOM file, unpacked: the largest film in 16 bits, and its header."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
_OTHER_IMAGES = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
}
_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7-zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}


def sniff(head: bytes) -> str:
    """The kind of a file from its first `SNIFF_BYTES` bytes: "dicom", "png", "jpeg" or ""."""
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(PNG_MAGIC):
        return "png"
    return "jpeg" if head.startswith(JPEG_MAGIC) else ""


def describe(head: bytes) -> str:
    """Why a file with this head is not read, in words."""
    if not head:
        return "empty file"
    for magic, name in _OTHER_IMAGES.items():
        if head.startswith(magic):
            return f"{name} files are not read: convert it to PNG without loss"
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            return f"{name} file that is not named .zip or .tar.{{gz,bz2,xz}}: rename or repack it"
    if head[257:262] == b"ustar":
        return "tar archive that is not named .tar: rename it"
    return f"not a DICOM, PNG or JPEG file (starts with {head[:8].hex(' ')})"


def check_size(height: int, width: int) -> None:
    """Raises ValueError where an image is larger than `MAX_PIXELS` or has a side under `MIN_SIDE`."""
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS} are read")
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{width} x {height} pixels, a film has at least {MIN_SIDE} on each side")


def codestream_size(code: bytes) -> tuple[int, int] | None:
    """(height, width) in a JPEG, JPEG-LS or JPEG 2000 codestream; None where there is none to be found."""
    if code[:4] == b"\xff\x4f\xff\x51" and len(code) >= 24:
        # ISO/IEC 15444-1, A.5.1: Lsiz, Rsiz, Xsiz, Ysiz, XOsiz, YOsiz; the image is grid minus offset.
        x, y, x_offset, y_offset = struct.unpack(">4I", code[8:24])
        return y - y_offset, x - x_offset
    for marker, segment in _segments(code):
        if _is_frame(marker):
            return struct.unpack(">HH", segment[1:5]) if len(segment) >= 5 else None
    return None


def codestream_precision(code: bytes) -> int | None:
    """Bits per value in a JPEG, JPEG-LS or JPEG 2000 codestream; None where there is none to be found."""
    if code[:4] == b"\xff\x4f\xff\x51" and len(code) >= 43:
        return (code[42] & 0x7F) + 1  # Ssiz
    for marker, segment in _segments(code):
        if _is_frame(marker):
            return segment[0] if segment and 2 <= segment[0] <= 16 else None
    return None


def frame_marker(code: bytes) -> int:
    """The second byte of a JPEG or JPEG-LS codestream's start of frame: its process; 0 for none."""
    return next((marker for marker, _ in _segments(code) if _is_frame(marker)), 0)


def _is_frame(marker: int) -> bool:
    """Start of frame, ITU-T T.81 B.2.2 (C4, C8, CC are no frames) and JPEG-LS's FFF7."""
    return marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))


def _segments(code: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and contents of a JPEG up to its first scan."""
    at = 2
    while code[:2] == b"\xff\xd8" and at + 4 <= len(code) and code[at] == 0xFF:
        marker = code[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack(">H", code[at + 2 : at + 4])
        if marker == 0xDA or length < 2:
            return
        yield marker, code[at + 4 : at + 2 + length]
        at += 2 + length


def check_deflated(file: BinaryIO) -> None:
    """Raises ValueError where a deflated DICOM file unpacks to more than a film: pydicom unpacks it whole.

    Leaves the file where it is.
    """
    start = file.tell()
    head = file.read(4096)
    if head[128:132] == b"DICM" and _DEFLATED in head:
        # PS3.10 7.1: the meta header begins with its own length, and only what follows it is deflated.
        file.seek(start + 144 + struct.unpack("<I", head[140:144])[0])
        unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        with contextlib.suppress(zlib.error):  # damaged: pydicom says so
            while packed := unpacker.unconsumed_tail or file.read(2**16):
                size += len(unpacker.decompress(packed, 2**20))
                if size > MAX_INFLATED_BYTES:
                    raise ValueError(f"unpacks to more than {MAX_INFLATED_BYTES} bytes")
                if unpacker.eof:
                    break
    file.seek(start)
