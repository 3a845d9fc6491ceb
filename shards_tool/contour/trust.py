"""From maps of probability to two regions, and whether they can be trusted.

The certainty is in units of IoU: how much of the chest region stays the same whether the lungs are cut out at
a probability of 0.25 or of 0.75, whether it is their hull or the network's own map of the hull, and (where
these leave doubt) whether the chest is looked at closer, and in a mirror. The least of the three counts.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from shards_tool.contour.region import Mask, hull_of, iou

Map = npt.NDArray[np.float32]

UNCERTAIN = "uncertain"
LEAST_CERTAINTY = 0.7
"""Below it a film gets the fallback."""
_LOW, _MIDDLE, _HIGH = 0.25, 0.5, 0.75
_LEAST_LOBE = 0.04
"""Of the chest's area: a smaller piece is a speck, not a lung."""
_SHARE_OF_FILM = (0.08, 0.98)
_SHARE_OF_CHEST = (0.35, 0.97)
_FARTHEST = 0.3
"""Of the film's sides, from its middle to that of the chest."""


@dataclass(frozen=True, kw_only=True)
class Regions:
    """In the maps' pixels, cropped to the film."""

    lung: Mask
    chest: Mask
    """uint8, 0 or 1."""
    lobes: int
    """Lung fields found, at most two."""
    certainty: float
    """0 to 1."""


def regions_of(lung: Map, chest: Map | None) -> Regions:
    """Lungs are the two largest pieces without holes, the chest is their hull.

    Where one lung is all that is seen, the chest reaches as far as the chest map says.
    """
    is_lung, lobes = _two_lobes(lung >= _MIDDLE)
    is_chest = hull_of(is_lung)
    low, high = (hull_of(_two_lobes(lung >= level)[0]) for level in (_LOW, _HIGH))
    certainty = iou(low, high)
    if chest is not None:
        other = hull_of(_largest(chest >= _MIDDLE))
        if lobes == 1:
            is_chest = hull_of(is_chest | other)
        certainty = min(certainty, iou(is_chest, other))
    return Regions(lung=is_lung, chest=is_chest, lobes=lobes, certainty=certainty)


def doubt_about(regions: Regions) -> str:
    """Why these are not the lungs of a frontal film, or ""."""
    area, chest = regions.chest.size, int(np.count_nonzero(regions.chest))
    if regions.lobes == 0 or chest < _SHARE_OF_FILM[0] * area:
        return "no chest found"
    if chest > _SHARE_OF_FILM[1] * area:
        return "the chest fills the film"
    height, width = regions.chest.shape
    row, column = (
        float(np.arange(size) @ regions.chest.sum(axis=1 - axis, dtype=np.int64)) / chest
        for axis, size in enumerate((height, width))
    )
    if abs(row / height - 0.5) > _FARTHEST or abs(column / width - 0.5) > _FARTHEST:
        return "the chest is at the film's edge"
    share = int(np.count_nonzero(regions.lung)) / chest
    if not _SHARE_OF_CHEST[0] <= share <= _SHARE_OF_CHEST[1]:
        return f"lungs are {share:.0%} of the chest"
    if regions.certainty < LEAST_CERTAINTY:
        return UNCERTAIN
    return ""


def _two_lobes(is_lung: npt.NDArray[np.bool_]) -> tuple[Mask, int]:
    outlines = sorted(_outlines(is_lung), key=cv2.contourArea, reverse=True)[:2]
    out = np.zeros(is_lung.shape, np.uint8)
    if not outlines:
        return out, 0
    least = _LEAST_LOBE * cv2.contourArea(cv2.convexHull(np.concatenate(outlines)))
    lobes = [outline for outline in outlines if cv2.contourArea(outline) > least]
    cv2.drawContours(out, lobes, -1, 1, cv2.FILLED)
    return out, len(lobes)


def _largest(is_chest: npt.NDArray[np.bool_]) -> Mask:
    out = np.zeros(is_chest.shape, np.uint8)
    cv2.drawContours(out, sorted(_outlines(is_chest), key=cv2.contourArea)[-1:], -1, 1, cv2.FILLED)
    return out


def _outlines(is_region: npt.NDArray[np.bool_]) -> list[Any]:
    """Points [N, 1, 2] of each piece's outer edge."""
    found, _ = cv2.findContours(is_region.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return list(found)
