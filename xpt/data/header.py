"""Check an encoded picture's header before a decoder sees it.

DALI stops the whole pipeline at one picture it cannot decode, or whose size does not fit a batch. The
bytes are known to be those that were written (CRC-32), so what is left to catch is a picture that
was written wrong: another size, or cut short. Reading the header and the end marker costs microseconds.
"""

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB\x60\x82"
# Start-of-frame markers: ITU-T T.81, table B.1 (C4, C8 and CC in that range mean other things).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def check_picture(data: bytes, *, side: int) -> None:
    """Raises ValueError, with the reason, unless `data` is a complete JPEG or PNG of side x side pixels."""
    if data.startswith(_JPEG_START):
        height, width = _jpeg_size(data)
        is_complete = data.endswith(_JPEG_END)
    elif data.startswith(_PNG_START):
        height, width = _png_size(data)
        is_complete = data.endswith(_PNG_END)
    else:
        raise ValueError(f"neither JPEG nor PNG, {len(data)} bytes")
    if (height, width) != (side, side):
        raise ValueError(f"wrong size, got {height} x {width} pixels, wanted {side} x {side}")
    if not is_complete:
        raise ValueError("cut short, no end marker")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width, from the frame segment; a segment is a marker and a length that counts itself."""
    at = len(_JPEG_START)
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker in _START_OF_FRAME:
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        # A second FF is padding before a marker.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    raise ValueError("JPEG without a frame header")


def _png_size(data: bytes) -> tuple[int, int]:
    """Height and width from IHDR, which is always the first chunk."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        raise ValueError("PNG without IHDR")
    return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
