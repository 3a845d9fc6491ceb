"""The finder that looks at each film: the network, a closer look where there is doubt, and the fallback."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from shards_tool.contour.fixed import mean_shape
from shards_tool.contour.region import Contour, Mask, iou
from shards_tool.contour.segmenter import SHIPPED, Found, Map, Segmenter
from shards_tool.contour.trust import UNCERTAIN, Regions, doubt_about, regions_of
from shards_tool.film import Grey
from shards_tool.letterbox import Box, contour_mask
from shards_tool.posture import ORIENTATIONS, looks_lateral, orientation_of, thumbnail

_SURE = 0.94
"""Certainty from which no closer look is taken: it would cost as much again, for every film."""
_AROUND = 0.06
"""Of the chest's height and width, on each side: what a closer look sees of its surroundings."""


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
        if seen.turn or seen.is_negative:
            seen = self._look(canvas, box, seen, mirror=False)
        seen = _cropped(seen, box)
        regions = _regions(seen)
        if regions.certainty < _SURE and doubt_about(regions) in ("", UNCERTAIN):
            regions = self._closer(pixels_HW, seen, regions)
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

    def _closer(self, pixels_HW: Grey, seen: Found, first: Regions) -> Regions:
        """Of a second look at the chest alone, which is then larger, and mirrored; both looks count equally.

        Twice as fine as the first one, where a costophrenic angle is thinner than a pixel.
        """
        height, width = (2 * n for n in first.chest.shape)
        window = _window(first.chest, pixels_HW.shape)
        canvas, box = self._segment.canvas_of(pixels_HW[window])
        found = _cropped(self._look(canvas, box, seen, mirror=True), box)

        def placed(values: Map) -> Map:
            out = np.zeros((height, width), np.float32)
            part = out[_window(first.chest, out.shape)]
            part[:] = _resized(values, *part.shape)
            return out

        wide = _mapped(seen, lambda values: _resized(values, height, width))
        close = _mapped(found, placed)
        both = _regions(_mean(wide, close))
        agreed = iou(first.chest, _regions(_mapped(close, _every_other)).chest)
        return replace(both, certainty=min(both.certainty, agreed))

    def _look(self, canvas: Map, box: Box, seen: Found, *, mirror: bool) -> Found:
        """What is seen of the film set right as `seen` says, put back into its own position."""
        if seen.is_negative:
            canvas = canvas.copy()
            content = canvas[box.top : box.bottom, box.left : box.right]
            np.subtract(1, content, out=content)
        view = np.rot90(canvas, -seen.turn)
        found = self._segment(view[:, ::-1] if mirror else view)

        def back(values: Map) -> Map:
            return np.ascontiguousarray(np.rot90(values[:, ::-1] if mirror else values, seen.turn))

        return replace(_mapped(found, back), turn=seen.turn, is_negative=seen.is_negative)


def _window(chest: Mask, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the chest and `_AROUND` it, in a picture of that shape."""
    slices = []
    for axis, size in enumerate(shape):
        inside = np.flatnonzero(chest.any(axis=1 - axis))
        first, last = inside[0] / chest.shape[axis], (inside[-1] + 1) / chest.shape[axis]
        more = _AROUND * (last - first)
        slices.append(slice(max(0, int((first - more) * size)), min(size, int((last + more) * size))))
    return slices[0], slices[1]


def _every_other(values: Map) -> Map:
    return np.ascontiguousarray(values[1::2, 1::2])


def _resized(values: Map, height: int, width: int) -> Map:
    return np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _mapped(found: Found, change: Callable[[Map], Map]) -> Found:
    chest = None if found.chest is None else change(found.chest)
    return replace(found, lung=change(found.lung), chest=chest)


def _is_lateral(small_HW: Grey, turn: int, regions: Regions) -> bool:
    """Of the film set upright; as it lies, too, where one lung is all that is seen: from the side, the
    network's opinion of the pose is not to be relied on."""
    upright = np.ascontiguousarray(np.rot90(small_HW, -turn))
    return looks_lateral(upright) or (regions.lobes == 1 and looks_lateral(small_HW))


def _mean(a: Found, b: Found) -> Found:
    half = np.float32(0.5)
    chest = None if a.chest is None or b.chest is None else half * (a.chest + b.chest)
    return Found(lung=half * (a.lung + b.lung), chest=chest, turn=a.turn, is_negative=a.is_negative)


def _cropped(found: Found, box: Box) -> Found:
    return _mapped(found, lambda values: values[box.top : box.bottom, box.left : box.right])


def _regions(found: Found) -> Regions:
    return regions_of(found.lung, found.chest)


def _fallback(pixels_HW: Grey, reason: str, *, certainty: float) -> Contour:
    orientation = orientation_of(thumbnail(pixels_HW))
    height, width = pixels_HW.shape
    mask_hw = mean_shape(height, width, orientation)
    return Contour(
        mask_hw=mask_hw, method="mean", certainty=certainty, reason=reason, orientation=orientation
    )
