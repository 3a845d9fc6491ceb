"""Where the chest is: the interface for contour finders, and the two that need no model.

A finder is any callable of `ContourFinder`'s form. A finder of its own kind (a segmentation network,
say) needs a name in `contour_finder`, and nothing else here changes.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from shards_tool.film import Grey
from shards_tool.schema import CONTOUR_CHEST, CONTOUR_LUNG, CONTOUR_OUTSIDE

Mask = npt.NDArray[Any]
"""uint8, height x width."""

MASK_IGNORE = 127
"""V7's lung masks: a device or writing over the lung, annotated apart. Under it is lung."""
MIN_LUNG_VALUE = 192
"""Masks saved through a lossy or smoothing step still count as lung from here on."""


@dataclass(frozen=True, kw_only=True)
class Contour:
    mask_HW: Mask
    """Of the film's size: `CONTOUR_OUTSIDE`, `CONTOUR_CHEST` or `CONTOUR_LUNG`."""
    method: str
    """What `SampleRecord.contour` says."""


class ContourFinder(Protocol):
    def __call__(self, pixels_HW: Grey, path: PurePosixPath) -> Contour:
        """Find the chest in a film.

        Args:
            pixels_HW: the film as read: upright, full range, bone bright.
            path: of its source file, from the name of the source folder on.

        Raises:
            ValueError: what was asked for cannot be had for this film; it then goes to quarantine.
        """
        ...


def contour_finder(spec: str) -> ContourFinder:
    """The finder for a `--contour` value: "rect" or "masks:DIR".

    Raises:
        ValueError: unknown method, or no such folder.
    """
    method, _, argument = spec.partition(":")
    if method == "rect" and not argument:
        return find_rect
    if method == "masks" and argument:
        return MaskFolder(Path(argument))
    raise ValueError(f"--contour {spec!r} is not known; give rect, or masks:DIR with a folder of mask PNGs")


RECT_GRID = 20
"""Tokens on a side in the released code: 1280 pixels in tokens of 64."""


def find_rect(pixels_HW: Grey, path: PurePosixPath) -> Contour:
    """The rectangle of the paper's released code, the same for every film, relative to the content.

    Rows [G/4 + 1, 3G/4 + 1) and columns [G/8 + 1, 3G/4 + 1) of a grid of G = 20 tokens.
    """
    height, width = pixels_HW.shape
    token = 1 / RECT_GRID
    mask_HW = np.full((height, width), CONTOUR_OUTSIDE, dtype=np.uint8)
    rows = slice(round((0.25 + token) * height), round((0.75 + token) * height))
    columns = slice(round((0.125 + token) * width), round((0.75 + token) * width))
    mask_HW[rows, columns] = CONTOUR_CHEST
    return Contour(mask_HW=mask_HW, method="rect")


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
        return Contour(mask_HW=_as_contour(_fitted(mask_HW, pixels_HW.shape)), method="mask")

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
    is_lung = (mask_HW >= MIN_LUNG_VALUE) | (mask_HW == MASK_IGNORE)
    chest_HW = np.where(mask_HW == CONTOUR_CHEST, CONTOUR_CHEST, CONTOUR_OUTSIDE).astype(np.uint8)
    outlines, _ = cv2.findContours(is_lung.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if outlines:
        cv2.fillConvexPoly(chest_HW, cv2.convexHull(np.concatenate(outlines)), CONTOUR_CHEST)
    if not chest_HW.any():
        values = ", ".join(str(value) for value in np.unique(mask_HW)[:6])
        raise ValueError(f"its mask marks nothing (values {values}); wanted 255 lung, 128 chest, 0 outside")
    return np.where(is_lung, CONTOUR_LUNG, chest_HW).astype(np.uint8)
