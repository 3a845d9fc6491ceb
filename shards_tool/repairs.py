"""Mending the headers that vendors write: what is missing or impossible gets a value by a stated rule.

Each rule has a name, and the record of a film says which ones were needed. Nothing is guessed where
the pixels would come out differently for different guesses and the file gives no hint: such a film is
quarantined by the decoder's own complaint.
"""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.uid import (
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from shards_tool.headers import codestream_precision, frame_marker

_PHOTOMETRICS = {
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420"),
    *("YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422"),
}
_MONOCHROME = {"MONOCHROME": "MONOCHROME2", "GRAYSCALE": "MONOCHROME2", "GREYSCALE": "MONOCHROME2"}
_ALLOCATED = (1, 8, 16, 32, 64)
_SYNTAX_OF_FRAME = {
    0xC0: JPEGBaseline8Bit,
    0xC1: JPEGExtended12Bit,
    0xC3: JPEGLosslessSV1,
    0xF7: JPEGLSLossless,
}


def mend(dataset: Dataset) -> list[str]:
    """Complete the description of the pixels in place; the names of the rules that were needed, in order."""
    needed = []
    for name, rule in (
        ("transfer_syntax", _transfer_syntax),
        ("number_of_frames", _number_of_frames),
        ("samples_per_pixel", _samples_per_pixel),
        ("bits_allocated", _bits_allocated),
        ("photometric", _photometric),
        ("planar_configuration", _planar_configuration),
        ("bits_stored", _bits_stored),
        ("high_bit", _high_bit),
        ("pixel_representation", _pixel_representation),
    ):
        if rule(dataset):
            needed.append(name)
    return needed


def whole(dataset: Dataset, name: str) -> int | None:
    """A whole number, the first of several; None for what is absent, empty or no number."""
    try:
        value = dataset.get(name)
        if isinstance(value, MultiValue | list):
            value = value[0] if len(value) else None
        return None if value is None or value == "" or isinstance(value, bytes) else int(value)
    except (ValueError, TypeError, OverflowError):  # what pydicom raises for text that is no number
        return None


def first_frame(dataset: Dataset) -> bytes:
    """The first compressed frame, or b"" where pixels are native or damaged."""
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if "PixelData" not in dataset or syntax is None or not syntax.is_encapsulated:
        return b""
    return next(iter(generate_frames(dataset.PixelData, number_of_frames=1)), b"")


def _transfer_syntax(dataset: Dataset) -> bool:
    """Missing: as the file was parsed, or the codec whose first bytes the pixels have."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID") or "PixelData" not in dataset:
        return False
    is_implicit, is_little = dataset.original_encoding
    native = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    found: UID | None = native if is_little is not False else ExplicitVRBigEndian
    if dataset["PixelData"].is_undefined_length:
        frame = next(iter(generate_frames(dataset.PixelData, number_of_frames=1)), b"")
        if frame.startswith(b"\xff\x4f\xff\x51"):
            found = JPEG2000
        elif frame[:4] in (b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"):  # RLE's count of segments
            found = RLELossless
        else:
            found = _SYNTAX_OF_FRAME.get(frame_marker(frame))
    if found is None:
        return False
    dataset.file_meta.TransferSyntaxUID = found
    return True


def _number_of_frames(dataset: Dataset) -> bool:
    """Empty, zero or negative: one."""
    if "NumberOfFrames" not in dataset or (whole(dataset, "NumberOfFrames") or 0) >= 1:
        return False
    dataset.NumberOfFrames = 1
    return True


def _samples_per_pixel(dataset: Dataset) -> bool:
    """Missing: 3 for a colour interpretation, else 1."""
    if whole(dataset, "SamplesPerPixel") is not None:
        return False
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    dataset.SamplesPerPixel = 3 if photometric.startswith(("RGB", "YBR")) else 1
    return True


def _bits_allocated(dataset: Dataset) -> bool:
    """Missing or impossible: from the length of native pixels, else the least that holds the bits stored."""
    if whole(dataset, "BitsAllocated") in _ALLOCATED:
        return False
    bits = whole(dataset, "BitsStored") or codestream_precision(first_frame(dataset)) or 16
    allocated = 8 if bits <= 8 else 16
    if "PixelData" in dataset and not first_frame(dataset):
        values = (
            dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * (dataset.get("NumberOfFrames") or 1)
        )
        counted = len(dataset.PixelData) * 8 // values
        allocated = counted if counted in _ALLOCATED else allocated
    dataset.BitsAllocated = allocated
    return True


def _photometric(dataset: Dataset) -> bool:
    """Missing or unknown: palette where there is one, RGB for three samples, MONOCHROME1 where the
    presentation LUT says INVERSE, else MONOCHROME2. Spelling is mended."""
    written = dataset.get("PhotometricInterpretation")
    plain = " ".join(str(written or "").upper().replace("\0", " ").split())
    is_colour = dataset.SamplesPerPixel == 3
    if plain in _PHOTOMETRICS and is_colour == plain.startswith(("RGB", "YBR")):
        mended = plain
    elif is_colour:
        mended = "RGB"
    elif (joined := plain.replace(" ", "").replace("_", "")) in _PHOTOMETRICS:
        mended = joined
    elif joined in _MONOCHROME:
        mended = _MONOCHROME[joined]
    elif "RedPaletteColorLookupTableDescriptor" in dataset:
        mended = "PALETTE COLOR"
    else:
        is_inverse = str(dataset.get("PresentationLUTShape") or "").upper() == "INVERSE"
        mended = "MONOCHROME1" if is_inverse else "MONOCHROME2"
    if mended == written:
        return False
    dataset.PhotometricInterpretation = mended
    return True


def _planar_configuration(dataset: Dataset) -> bool:
    """Missing in a colour picture: 0, colour by pixel."""
    if dataset.SamplesPerPixel == 1 or whole(dataset, "PlanarConfiguration") in (0, 1):
        return False
    dataset.PlanarConfiguration = 0
    return True


def _bits_stored(dataset: Dataset) -> bool:
    """Missing or impossible: the high bit and one, else the codestream's precision, else what the largest
    native value needs (at least 8), else the bits allocated."""
    if "PixelData" not in dataset:  # float pixels have none
        return False
    allocated = dataset.BitsAllocated
    if 1 <= (whole(dataset, "BitsStored") or 0) <= allocated:
        return False
    high_bit = whole(dataset, "HighBit")
    if high_bit is not None and 7 <= high_bit < allocated:
        bits = high_bit + 1
    elif frame := first_frame(dataset):
        bits = min(codestream_precision(frame) or allocated, allocated)
    elif allocated == 16 and whole(dataset, "PixelRepresentation") != 1:
        is_little = dataset.original_encoding[1] is not False
        values = np.frombuffer(dataset.PixelData, "<u2" if is_little else ">u2")
        bits = max(8, int(values.max(initial=0)).bit_length())
    else:
        bits = allocated
    dataset.BitsStored = bits
    return True


def _high_bit(dataset: Dataset) -> bool:
    """Missing or impossible: the bits stored less one. Old left-aligned pixels are shifted when read."""
    if "PixelData" not in dataset:
        return False
    high_bit = whole(dataset, "HighBit")
    if high_bit is not None and dataset.BitsStored - 1 <= high_bit < dataset.BitsAllocated:
        return False
    dataset.HighBit = dataset.BitsStored - 1
    return True


def _pixel_representation(dataset: Dataset) -> bool:
    """Missing or impossible: unsigned."""
    if "PixelData" not in dataset or whole(dataset, "PixelRepresentation") in (0, 1):
        return False
    dataset.PixelRepresentation = 0
    return True


def mend_values(pixels: np.ndarray, dataset: Dataset) -> tuple[np.ndarray, int, list[str]]:
    """Stored values as they are meant, the bits that they have, and the names of the rules that were needed.

    - Bits below the stored ones (HighBit above BitsStored - 1) are shifted out where they are all 0.
    - Signed values without their sign bits repeated (allowed, PS3.5 8.1.1) get them: no repair.
    - Bits above the stored ones are cleared where a header says that they hold an old overlay (PS3.5
      8.1.2, retired). Otherwise they belong to the value, and the film has more bits than its header
      says: clearing them would turn the brightest parts dark.
    """
    bits = dataset.BitsStored
    needed = []
    if pixels.dtype.kind not in "iu" or pixels.size == 0:
        return pixels, bits, needed
    shift = dataset.HighBit + 1 - bits
    if shift > 0 and not (pixels & (2**shift - 1)).any():
        pixels = pixels >> shift
        needed.append("high_bit_shift")
    high = int(pixels.max())
    if pixels.dtype.kind == "u":
        if high < 2**bits:
            return pixels, bits, needed
        if _has_overlay_bits(dataset):
            return pixels & np.asarray(2**bits - 1, dtype=pixels.dtype), bits, needed
        return pixels, high.bit_length(), [*needed, "values_above_bits_stored"]
    low, half = int(pixels.min()), 2 ** (bits - 1)
    if -half <= low and high < half:
        return pixels, bits, needed
    if low >= 0 and high < 2 * half:
        unsigned = pixels.astype(np.int32)
        return np.where(unsigned >= half, unsigned - 2 * half, unsigned).astype(pixels.dtype), bits, needed
    bits = max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0) + 1
    return pixels, bits, [*needed, "values_above_bits_stored"]


def _has_overlay_bits(dataset: Dataset) -> bool:
    positions = (dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))  # Overlay Bit Position
    return any(position is not None and position.value for position in positions)
