"""The finder that looks at each film: the network, a second look where there is doubt, and the fallback."""

from pathlib import Path, PurePosixPath

import numpy as np

from shards_tool.contour.fixed import mean_shape
from shards_tool.contour.region import Contour, iou
from shards_tool.contour.segmenter import SHIPPED, Found, Map, Segmenter
from shards_tool.contour.trust import UNCERTAIN, Regions, doubt_about, regions_of
from shards_tool.film import Grey
from shards_tool.letterbox import Box, contour_mask
from shards_tool.posture import ORIENTATIONS, looks_lateral, orientation_of, thumbnail

_SURE = 0.92
"""Certainty from which no second look is taken: it would cost as much again, for every film."""


class NetworkFinder:
    """Any film, upright or not, negative or not; the mean shape where the network is not to be trusted."""

    def __init__(self, path: Path = SHIPPED) -> None:
        self._segment = Segmenter(path)
        self.model_sha256 = self._segment.sha256

    def __call__(self, pixels_HW: Grey, path: PurePosixPath) -> Contour:
        canvas, box = self._segment.canvas_of(pixels_HW)
        if not canvas.any():
            return _fallback(pixels_HW, "blank", certainty=0.0)
        seen = self._segment(canvas)
        regions = self._regions(canvas, box, seen)
        certainty = round(regions.certainty, 4)
        doubt = doubt_about(regions)
        if doubt in ("", UNCERTAIN) and _is_lateral(thumbnail(pixels_HW), seen.turn, regions):
            doubt = "looks lateral"
        if doubt:
            return _fallback(pixels_HW, doubt, certainty=certainty)
        return Contour(
            mask_hw=contour_mask(regions.lung, regions.chest),
            method="network",
            certainty=certainty,
            reason="one lung field" if regions.lobes == 1 else "",
            orientation=ORIENTATIONS[seen.turn],
        )

    def _regions(self, canvas: Map, box: Box, seen: Found) -> Regions:
        """Of the film as it lies; set right where it does not seem so; also mirrored where there is doubt."""
        if seen.is_negative:
            canvas = canvas.copy()
            content = canvas[box.top : box.bottom, box.left : box.right]
            np.subtract(1, content, out=content)
        if seen.turn or seen.is_negative:
            seen = self._look(canvas, seen.turn, mirror=False)
        regions = _cropped(seen, box)
        if regions.certainty >= _SURE:
            return regions
        mirrored = self._look(canvas, seen.turn, mirror=True)
        other = _cropped(mirrored, box)
        both = _cropped(_mean(seen, mirrored), box)
        agreed = iou(regions.chest, other.chest)
        return Regions(
            lung=both.lung, chest=both.chest, lobes=both.lobes, certainty=min(both.certainty, agreed)
        )

    def _look(self, canvas: Map, turn: int, *, mirror: bool) -> Found:
        """What is seen after so many quarter turns, put back into the film's own position."""
        view = np.rot90(canvas, -turn)
        found = self._segment(view[:, ::-1] if mirror else view)

        def back(values: Map) -> Map:
            return np.ascontiguousarray(np.rot90(values[:, ::-1] if mirror else values, turn))

        chest = None if found.chest is None else back(found.chest)
        return Found(lung=back(found.lung), chest=chest, turn=turn, is_negative=found.is_negative)


def _is_lateral(small_HW: Grey, turn: int, regions: Regions) -> bool:
    """Of the film set upright; as it lies, too, where one lung is all that is seen: from the side, the
    network's opinion of the pose is not to be relied on."""
    upright = np.ascontiguousarray(np.rot90(small_HW, -turn))
    return looks_lateral(upright) or (regions.lobes == 1 and looks_lateral(small_HW))


def _mean(a: Found, b: Found) -> Found:
    half = np.float32(0.5)
    chest = None if a.chest is None or b.chest is None else half * (a.chest + b.chest)
    return Found(lung=half * (a.lung + b.lung), chest=chest, turn=a.turn, is_negative=a.is_negative)


def _cropped(found: Found, box: Box) -> Regions:
    content = np.s_[box.top : box.bottom, box.left : box.right]
    return regions_of(found.lung[content], None if found.chest is None else found.chest[content])


def _fallback(pixels_HW: Grey, reason: str, *, certainty: float) -> Contour:
    orientation = orientation_of(thumbnail(pixels_HW))
    height, width = pixels_HW.shape
    mask_hw = mean_shape(height, width, orientation)
    return Contour(
        mask_hw=mask_hw, method="mean", certainty=certainty, reason=reason, orientation=orientation
    )
