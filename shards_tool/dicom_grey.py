"""What a DICOM header says about grey, as a rule; with repairs for what vendors get wrong."""

import dataclasses

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from shards_tool.grey import MIN_INSIDE, GreyRule, Lut
from shards_tool.repairs import whole

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def grey_rule(dataset: Dataset, pixels: np.ndarray, *, bits_stored: int) -> tuple[GreyRule, list[str]]:
    """The rule for these stored values, and the names of the repairs that it needed.

    - `rescale`: a slope of 0 or none that is finite counts as 1 with intercept 0.
    - `window`: empty, without a number, narrower than its function allows, or one centre too few: the next
      window that is usable, else none.
    - `voi_function`: an unknown one counts as LINEAR.
    - `modality_lut`, `voi_lut`: without descriptor, without entries, or of one value only: left out.
    - `lut_entries`: fewer entries than declared; values beyond get the last one.
    - `lut_bits`: entries that need more or fewer bits than declared; the entries give the scale.
    - `padding`: a value of the wrong sign is taken modulo 65,536; one that leaves less than 1% of the
      pixels is no padding.
    """
    repairs: list[str] = []
    slope, intercept = _rescale(dataset, repairs)
    modality_lut = _lut(dataset, "ModalityLUTSequence", "modality_lut", repairs, signed=_is_signed(dataset))
    is_signed = _is_signed(dataset) or intercept < 0
    voi_lut = _lut(dataset, "VOILUTSequence", "voi_lut", repairs, signed=is_signed)
    if voi_lut and int(voi_lut.entries.min()) == int(voi_lut.entries.max()):
        voi_lut = None
        repairs.append("voi_lut")
    if voi_lut and int(voi_lut.entries.max()).bit_length() != voi_lut.bits:
        repairs.append("lut_bits")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in _FUNCTIONS:
        repairs.append("voi_function")
        function = "LINEAR"
    rule = GreyRule(
        bits_stored=bits_stored,
        invert=dataset.PhotometricInterpretation == "MONOCHROME1",
        padding=_padding(dataset, pixels, repairs),
        modality_lut=modality_lut,
        slope=slope,
        intercept=intercept,
        voi_lut=voi_lut,
        function=function,
    )
    if voi_lut is None:
        center, width = _window(dataset, function, repairs)
        rule = dataclasses.replace(rule, center=center, width=width)
    return rule, repairs


def _is_signed(dataset: Dataset) -> bool:
    return whole(dataset, "PixelRepresentation") == 1


def _numbers(dataset: Dataset, name: str) -> list[float]:
    """The finite numbers of an element; [] where it is absent, empty or holds other text."""
    try:
        value = dataset.get(name)
        values = list(value) if isinstance(value, MultiValue | list) else [value]
        numbers = [float(v) for v in values if v is not None and v != ""]
    except (ValueError, TypeError, OverflowError):
        return []
    return [number for number in numbers if np.isfinite(number)]


def _rescale(dataset: Dataset, repairs: list[str]) -> tuple[float, float]:
    if "RescaleSlope" not in dataset and "RescaleIntercept" not in dataset:
        return 1.0, 0.0
    slopes, intercepts = _numbers(dataset, "RescaleSlope"), _numbers(dataset, "RescaleIntercept")
    if not slopes or not intercepts or slopes[0] == 0:
        repairs.append("rescale")
    if not slopes or slopes[0] == 0:
        return 1.0, 0.0
    return slopes[0], intercepts[0] if intercepts else 0.0


def _window(dataset: Dataset, function: str, repairs: list[str]) -> tuple[float | None, float | None]:
    """Of alternative windows the first, which the standard shows by default, unless it cannot be used."""
    if "WindowCenter" not in dataset and "WindowWidth" not in dataset:
        return None, None
    centers, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    least = 1.0 if function == "LINEAR" else float(np.finfo(np.float64).tiny)
    usable = [(c, w) for c, w in zip(centers, widths, strict=False) if w >= least]
    if len(centers) != len(widths) or not usable or usable[0] != (centers[0], widths[0]):
        repairs.append("window")
    return usable[0] if usable else (None, None)


def _padding(dataset: Dataset, pixels: np.ndarray, repairs: list[str]) -> tuple[int, int] | None:
    value = whole(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = whole(dataset, "PixelPaddingRangeLimit")
    ends = [_signed_like(end, pixels) for end in (value, value if limit is None else limit)]
    if ends != [value, value if limit is None else limit]:
        repairs.append("padding")
    low, high = min(ends), max(ends)
    if np.count_nonzero((pixels < low) | (pixels > high)) < MIN_INSIDE * pixels.size:
        repairs.append("padding")
        return None
    return low, high


def _signed_like(value: int, pixels: np.ndarray) -> int:
    """A 16-bit value that was written, or parsed, with the other sign than the pixels have."""
    if pixels.dtype.kind == "i" and 2**15 <= value < 2**16:
        return value - 2**16
    return value + 2**16 if pixels.dtype.kind == "u" and -(2**15) <= value < 0 else value


def _lut(dataset: Dataset, name: str, repair: str, repairs: list[str], *, signed: bool) -> Lut | None:
    """The first table of a sequence; None where there is none that can be used."""
    sequence = dataset.get(name)
    if not sequence:
        return None
    item = sequence[0]
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or isinstance(descriptor, bytes | int) or len(descriptor) != 3 or not data:
        repairs.append(repair)
        return None
    count, first, bits = (int(number) for number in descriptor)
    count = count % 2**16 or 2**16  # PS3.3 C.11.1.1.1: 0 stands for 65,536
    if signed and first >= 2**15:  # written without the sign that its input has
        first -= 2**16
    entries = _entries(data, count, bits, is_little=dataset.original_encoding[1] is not False)
    if not len(entries):
        repairs.append(repair)
        return None
    if len(entries) < count:
        repairs.append("lut_entries")
    return Lut(first=first, entries=entries[:count].astype(np.int64), bits=bits)


def _entries(data: object, count: int, bits: int, *, is_little: bool) -> np.ndarray:
    if not isinstance(data, bytes):
        return np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    is_packed = bits <= 8 and len(data) - count in (0, 1)  # one byte for each entry, padded to even
    dtype = np.dtype(np.uint8 if is_packed else "<u2" if is_little else ">u2")
    return np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)
