"""The chest region, and the form of every finder.

The chest region is the convex hull of both lung fields, the mediastinum between them included, in the
film's own coordinates. The lung fields are kept beside it. A lung field ends at the diaphragm and the
ribs; what hides it (fluid, consolidation, a device, the heart before it) does not end it.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt

from shards_tool.film import Grey

Mask = npt.NDArray[Any]
"""uint8, height x width."""


@dataclass(frozen=True, kw_only=True)
class Contour:
    mask_hw: Mask
    """`CONTOUR_OUTSIDE`, `CONTOUR_CHEST` or `CONTOUR_LUNG`. Of the film's size, or smaller and to be
    stretched to it, as `letterbox_contour` and `full_mask` do."""
    method: str
    """What `SampleRecord.contour` says."""
    certainty: float | None = None
    """0 to 1 where the finder has an opinion: about the IoU that it expects with a reader's chest region."""
    reason: str = ""
    """Why this is not an ordinary pair of lungs, or why the method is a fallback."""
    orientation: str = ""
    """As in `SampleRecord.orientation`, where the finder can tell."""


@runtime_checkable
class ContourFinder(Protocol):
    def __call__(self, pixels_HW: Grey, path: PurePosixPath) -> Contour:
        """Find the chest in a film.

        Args:
            pixels_HW: the film as read, of any size, full range of its dtype.
            path: of its source file, from the name of the source folder on.

        Raises:
            ValueError: what was asked for cannot be had for this film; it then goes to quarantine.
        """
        ...


def hull_of(is_lung: Mask) -> Mask:
    """uint8, 1 in the convex hull of what is not 0."""
    out = np.zeros(is_lung.shape, np.uint8)
    outlines, _ = cv2.findContours(is_lung.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if outlines:
        cv2.fillConvexPoly(out, cv2.convexHull(np.concatenate(outlines)), 1)
    return out


def iou(a: Mask, b: Mask) -> float:
    """Of two masks of the same size; 0 where both are empty: nothing agrees with nothing about a chest."""
    a, b = a > 0, b > 0
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 0.0
