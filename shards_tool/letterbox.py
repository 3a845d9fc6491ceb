"""Any picture onto a square canvas: aspect kept, centred, padded with 0."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from shards_tool.film import Grey
from shards_tool.schema import CONTOUR_CHEST, CONTOUR_LUNG, CONTOUR_SCALE

_Region = npt.NDArray[np.bool_] | npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]
_TWO_SAMPLES = 1.75, 2.3
"""Factors of shrinking at which the mean of two linear samples is the mean over the area: at 2 it is the
same, at the ends contrasts of any frequency differ by at most 4% of a wave's height."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """Content inside the canvas, in pixels; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def as_tuple(self) -> tuple[int, int, int, int]:
        return self.top, self.left, self.bottom, self.right


def content_box(height: int, width: int, side: int) -> Box:
    """Where a picture of this size lies on a square of `side` pixels."""
    longest = max(height, width)
    # Whole-number rounding, so that the result does not depend on the machine's floats.
    box_height = max(1, (2 * height * side + longest) // (2 * longest))
    box_width = max(1, (2 * width * side + longest) // (2 * longest))
    top, left = (side - box_height) // 2, (side - box_width) // 2
    return Box(top=top, left=left, bottom=top + box_height, right=left + box_width)


def letterbox(pixels_HW: Grey, side: int) -> tuple[Grey, Box]:
    """Resize to the square: by area when shrinking (no aliasing), bicubic when growing. Keeps the dtype."""
    height, width = pixels_HW.shape
    box = content_box(height, width, side)
    canvas = np.zeros((side, side), dtype=pixels_HW.dtype)
    canvas[box.top : box.bottom, box.left : box.right] = _resize(pixels_HW, box.height, box.width)
    return canvas, box


def _resize(pixels_HW: Grey, height: int, width: int) -> Grey:
    size = width, height
    if pixels_HW.shape == (height, width):
        return pixels_HW
    factor = max(pixels_HW.shape) / max(size)
    if factor <= 1:
        return cv2.resize(pixels_HW, size, interpolation=cv2.INTER_CUBIC)
    if not _TWO_SAMPLES[0] <= factor <= _TWO_SAMPLES[1]:
        return cv2.resize(pixels_HW, size, interpolation=cv2.INTER_AREA)
    # The mean over an area, from two linear samples along each of its sides: OpenCV has vector code for
    # both steps, and none for areas that are no whole number of pixels.
    samples = cv2.resize(pixels_HW, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(samples, size, interpolation=cv2.INTER_AREA)


def letterbox_contour(mask_hw: Mask, height: int, width: int, side: int) -> Mask:
    """The contour picture, 1/8 of the side: the film's transform, then the majority in each 8 x 8 block.

    Lung counts as chest: a block is lung where lung covers half of it, else chest where chest and
    lung together do.

    Args:
        mask_hw: the three values, of the film's size or smaller.
        height: of the film, as its width.
    """
    box, small = content_box(height, width, side), (side // CONTOUR_SCALE,) * 2
    if not _is_larger(box.height, box.width, mask_hw):
        mask_hw = _shrunk(mask_hw, box.height, box.width)  # once, for both regions
    regions = []
    for value in (CONTOUR_CHEST, CONTOUR_LUNG):
        canvas = np.zeros((side, side), dtype=np.uint8)
        canvas[box.top : box.bottom, box.left : box.right] = _resize_region(
            mask_hw, value, box.height, box.width
        )
        regions.append(cv2.resize(canvas, small, interpolation=cv2.INTER_AREA) >= _SHARE // 2)
    is_chest, is_lung = regions
    return contour_mask(is_lung, is_chest)


def full_mask(mask_hw: Mask, height: int, width: int) -> Mask:
    """The three values in a film's size; edges run between the pixels of a smaller mask, not along them."""
    if mask_hw.shape == (height, width):
        return mask_hw
    is_lung, is_chest = (
        _resize_region(mask_hw, value, height, width) > 0 for value in (CONTOUR_LUNG, CONTOUR_CHEST)
    )
    return contour_mask(is_lung, is_chest)


def contour_mask(is_lung: _Region, is_chest: _Region) -> Mask:
    """The three values, of two regions (not 0: inside); lung counts as chest."""
    return np.maximum((is_chest > 0) * np.uint8(CONTOUR_CHEST), (is_lung > 0) * np.uint8(CONTOUR_LUNG))


_SHARE = 128


def _resize_region(mask_hw: Mask, value: int, height: int, width: int) -> Mask:
    """`_SHARE` where the mask has at least the value, else 0; each region alone: half lung is not chest."""
    if not _is_larger(height, width, mask_hw):
        region = cv2.threshold(_shrunk(mask_hw, height, width), value - 1, _SHARE, cv2.THRESH_BINARY)[1]
        return region.astype(np.uint8, copy=False)
    _, region = cv2.threshold(mask_hw, value - 1, 255, cv2.THRESH_BINARY)
    region = cv2.resize(region, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.threshold(region, 127, _SHARE, cv2.THRESH_BINARY)[1].astype(np.uint8, copy=False)


def _shrunk(mask_hw: Mask, height: int, width: int) -> Mask:
    if mask_hw.shape == (height, width):
        return mask_hw
    shrunk = cv2.resize(mask_hw, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return shrunk.astype(np.uint8, copy=False)


def _is_larger(height: int, width: int, mask_hw: Mask) -> bool:
    return height > mask_hw.shape[0] or width > mask_hw.shape[1]
