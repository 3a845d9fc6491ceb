"""From stored values to grey, as a table: DICOM's modality LUT, VOI LUT or window, and inversion.

A film has few different stored values and many pixels, so the transform is computed in float64 once
for every value that occurs and then looked up. DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT
and window functions), C.7.6.3.1.2 (MONOCHROME1), C.7.5.1.1.2 (padding).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

PERCENTILES = 0.5, 99.5
"""Ends of the window where the source has none, in percent of the pixels that are film."""
EXTREME_SHARE = 0.01
"""The lowest or highest value is collimation or saturation, not film, where it holds more than this share."""
MIN_INSIDE = 0.01
"""A window with a smaller share of the pixels inside shows nothing of this film and is not used."""
_MAX_FLOAT32_COUNT = 2**24
"""OpenCV counts in float32, which holds whole numbers up to here."""
DISPLAY_BITS = 8
"""Without a window, a source of so few bits is taken as meant for display; one with more gets a window."""


@dataclass(frozen=True, kw_only=True)
class Lut:
    first: int
    """Input value of the first entry."""
    entries: npt.NDArray[np.int64]
    bits: int


@dataclass(frozen=True, kw_only=True)
class GreyRule:
    """What a DICOM header says about grey, with what is missing or unusable left at None."""

    bits_stored: int
    invert: bool = False
    """MONOCHROME1: low values are bright."""
    padding: tuple[int, int] | None = None
    """Lowest and highest stored value that is no image; shown black."""
    modality_lut: Lut | None = None
    slope: float = 1.0
    intercept: float = 0.0
    voi_lut: Lut | None = None
    center: float | None = None
    width: float | None = None
    function: str = "LINEAR"


def grey_table(stored: Values, counts: Counts, rule: GreyRule) -> tuple[Values, str]:
    """The grey of each stored value, in [0, 1] with air dark, and the window used.

    Args:
        stored: values that occur, increasing.
        counts: pixels with each value.
    """
    is_padding = np.zeros(stored.shape, dtype=bool)
    if rule.padding is not None:
        is_padding = (stored >= rule.padding[0]) & (stored <= rule.padding[1])
    counts = np.where(is_padding, 0, counts)
    values = (
        _look_up(stored, rule.modality_lut) if rule.modality_lut else stored * rule.slope + rule.intercept
    )
    if not np.isfinite(values).all():
        raise ValueError("rescale slope or intercept out of range")
    grey, window = _windowed(values, counts, rule)
    if rule.invert:
        grey = 1.0 - grey
    grey[is_padding] = 0.0
    return grey, window


def _windowed(values: Values, counts: Counts, rule: GreyRule) -> tuple[Values, str]:
    if rule.voi_lut:
        lut = rule.voi_lut
        # Vendors declare 16 bits for tables of 12, or 8 for tables of 10: the entries give the scale.
        bits = max(1, int(lut.entries.max()).bit_length())
        return _look_up(values, lut) / (2**bits - 1), "voi_lut"
    if rule.center is not None and rule.width is not None:
        grey = _window(values, rule.center, rule.width, rule.function)
        inside = counts[(grey > 0) & (grey < 1)].sum()
        if grey.max() > grey.min() and inside >= MIN_INSIDE * counts.sum():
            return grey, rule.function.lower()
    if rule.bits_stored <= DISPLAY_BITS and not rule.modality_lut:
        grey = (values - rule.intercept) / rule.slope / (2**rule.bits_stored - 1)
        return grey if rule.slope > 0 else 1.0 - grey, "full"
    low, high = percentile_window(values, counts)
    return np.clip((values - low) / (high - low), 0.0, 1.0), "percentile"


def _look_up(values: Values, lut: Lut) -> Values:
    index = np.clip(np.rint(values).astype(np.int64) - lut.first, 0, len(lut.entries) - 1)
    return lut.entries[index].astype(np.float64)


def _window(values: Values, center: float, width: float, function: str) -> Values:
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1 counts whole grey levels
        center, width = center - 0.5, width - 1.0
    if width == 0.0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0.0, 1.0)


def percentile_window(values: Values, counts: Counts) -> tuple[float, float]:
    """Ends of a window that holds the film, without collimation, saturation and outliers.

    Args:
        values: monotonic, either way.
        counts: pixels with each value.
    """
    counts = counts.copy()
    present = np.flatnonzero(counts)
    assert len(present) > 0
    if len(present) > 3:
        total = counts.sum()
        for extreme in (present[0], present[-1]):
            if counts[extreme] > EXTREME_SHARE * total:
                counts[extreme] = 0
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    low, high = (values[order][np.searchsorted(cumulative, p / 100 * cumulative[-1])] for p in PERCENTILES)
    if low == high:  # nearly all pixels have one value: the whole range is all there is
        low, high = values[present].min(), values[present].max()
    return float(low), float(high) if high > low else float(low) + 1.0


def apply_rule(pixels: np.ndarray, rule: GreyRule) -> tuple[npt.NDArray[np.uint16], str]:
    """Grey of an image of stored values, 0 to 65535, and the window used."""
    index_HW, first, step = _indexed(pixels)
    counts = _histogram(index_HW)
    present = np.flatnonzero(counts)
    occurring = slice(int(present[0]), int(present[-1]) + 1)
    stored = first + step * np.arange(occurring.start, occurring.stop, dtype=np.float64)
    if not counts[occurring][_outside_padding(stored, rule)].any():
        raise ValueError("no content: every pixel is padding")
    table, window = grey_table(stored, counts[occurring], rule)
    table_of_all = np.zeros(2**16, np.uint16)
    table_of_all[occurring] = np.rint(np.clip(table, 0.0, 1.0) * 65535)
    return cv2.LUT(index_HW, table_of_all).astype(np.uint16, copy=False), window


def _indexed(pixels: np.ndarray) -> tuple[npt.NDArray[np.uint16], float, float]:
    """Each pixel's place among 65,536 evenly spaced values, the first of these, and their distance."""
    if pixels.dtype.kind in "iu" and pixels.dtype.itemsize == 2:
        native = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("="), copy=False)
        if pixels.dtype.kind == "u":
            return native, 0.0, 1.0
        return native.view(np.uint16) ^ np.uint16(2**15), -(2.0**15), 1.0
    low, high = pixels.min(), pixels.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are no numbers")
    if pixels.dtype.kind in "iu" and int(high) - int(low) < 2**16:
        return (pixels.astype(np.int64) - int(low)).astype(np.uint16), float(low), 1.0
    # 32-bit and float pixel data: as many levels as the result has
    step = (float(high) - float(low)) / (2**16 - 1) or 1.0
    index_HW = np.rint((pixels.astype(np.float64) - float(low)) / step).astype(np.uint16)
    return index_HW, float(low), step


def _histogram(index_HW: npt.NDArray[np.uint16]) -> Counts:
    """Pixels with each of the 65,536 values."""
    if index_HW.size > _MAX_FLOAT32_COUNT:
        return np.bincount(index_HW.ravel(), minlength=2**16)
    counts = cv2.calcHist([index_HW], [0], None, [2**16], [0, 2**16])  # a sixth of bincount's time
    return counts.ravel().astype(np.int64)


def _outside_padding(stored: Values, rule: GreyRule) -> npt.NDArray[np.bool_]:
    if rule.padding is None:
        return np.ones(stored.shape, dtype=bool)
    return (stored < rule.padding[0]) | (stored > rule.padding[1])
