"""`--contour masks:DIR`: one mask picture for each film."""

from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from shards_tool.contour.fixed import find_rect
from shards_tool.contour.region import Contour, Mask, hull_of
from shards_tool.film import Grey
from shards_tool.letterbox import contour_mask
from shards_tool.schema import CONTOUR_CHEST

MASK_IGNORE = 127
"""V7's lung masks: a device or writing over the lung, annotated apart. Under it is lung."""
MIN_LUNG_VALUE = 192
"""Masks saved through a lossy or smoothing step still count as lung from here on."""


def is_lung_value(mask_HW: Mask) -> Mask:
    """bool, where a mask picture says lung."""
    return (mask_HW >= MIN_LUNG_VALUE) | (mask_HW == MASK_IGNORE)


class MaskFolder:
    """One mask picture for each film that has one; the rectangle for the rest, which the record then says.

    Lung is 255 (and 127, V7's "ignore"). The chest is the convex hull of the lungs, together with
    what the mask itself marks as chest (128).
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ValueError(f"--contour masks:{folder}: no such folder")
        self.folder = folder

    def __call__(self, pixels_HW: Grey, path: PurePosixPath) -> Contour:
        mask_path = self.mask_path(path)
        if mask_path is None:
            return find_rect(pixels_HW, path)
        mask_HW = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
        if mask_HW is None:
            raise ValueError(f"mask {mask_path.name} is not a readable PNG")
        return Contour(mask_hw=_as_contour(_fitted(mask_HW, pixels_HW.shape)), method="mask")

    def mask_path(self, path: PurePosixPath) -> Path | None:
        """DIR/a/b/film.png for the film a/b/film.dcm, else DIR/b/film.png, else DIR/film.png, else None."""
        parts = path.with_suffix(".png").parts
        for start in range(len(parts)):
            candidate = self.folder.joinpath(*parts[start:])
            if candidate.is_file():
                return candidate
        return None


def _fitted(mask_HW: Mask, shape: tuple[int, ...]) -> Mask:
    """The mask in the film's size, where it has the film's proportions."""
    height, width = shape
    mask_height, mask_width = mask_HW.shape
    if abs(mask_height * width - mask_width * height) > max(height, width):  # one pixel of rounding
        raise ValueError(f"its mask has {mask_width} x {mask_height} pixels, the film {width} x {height}")
    return cv2.resize(mask_HW, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _as_contour(mask_HW: Mask) -> Mask:
    is_lung = is_lung_value(mask_HW)
    is_chest = (mask_HW == CONTOUR_CHEST) | (hull_of(is_lung) > 0)
    if not is_chest.any():
        values = ", ".join(str(value) for value in np.unique(mask_HW)[:6])
        raise ValueError(f"its mask marks nothing (values {values}); wanted 255 lung, 128 chest, 0 outside")
    return contour_mask(is_lung, is_chest)
