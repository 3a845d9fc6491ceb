"""Writing in the picture: lines of characters near the borders, found by their shape.

Characters are small, of much the same height, in a row, and sharply brighter or darker than their
surroundings. A single letter (the lead marker of a side) is no line. This finds writing of display and
scanner software, which is what carries names and dates; it does not read it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from shards_tool.film import Grey

_WORKING_SIDE = 1280
"""Longest side in pixels at which characters are sought."""
_BORDER = 0.25
"""Share of each side within which writing is sought: in the middle, ribs and wires look like it."""
_STROKE = 11
"""Pixels: thicker than a stroke, thinner than a rib."""
_CONTRAST = 0.25
"""Of a stroke to its surroundings, in shares of the full range."""
_HEIGHTS = 6, 50
_FEWEST = 4
"""Characters of a line."""


@dataclass(frozen=True, kw_only=True)
class TextLine:
    """A line of writing in pixels of the film; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


def find_writing(pixels_HW: Grey) -> list[TextLine]:
    """Lines of at least four characters near the borders of a film."""
    height, width = pixels_HW.shape
    scale = min(1.0, _WORKING_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = pixels_HW if scale == 1.0 else cv2.resize(pixels_HW, size, interpolation=cv2.INTER_AREA)
    if small.dtype != np.uint8:
        small = cv2.convertScaleAbs(small, alpha=1 / 257)
    lines = []
    for strokes in _strokes(small):
        for left, top, right, bottom in _lines(_characters(strokes)):
            if not _is_near_border((left, top, right, bottom), size):
                continue
            # A first or last character may touch a bone and so be missed: room for it on either side.
            room, above = bottom - top, 2 + (bottom - top) // 5
            lines.append(
                TextLine(
                    top=max(0, int((top - above) / scale)),
                    left=max(0, int((left - room) / scale)),
                    bottom=min(height, int((bottom + above) / scale)),
                    right=min(width, int((right + room) / scale)),
                )
            )
    return sorted(lines, key=lambda line: (line.top, line.left))


def mask_writing(pixels_HW: Grey, lines: list[TextLine]) -> Grey:
    """The film with each line replaced by the median of a frame around it."""
    masked = pixels_HW.copy()
    for line in lines:
        margin = max(4, (line.bottom - line.top) // 2)
        rows = slice(max(0, line.top - margin), line.bottom + margin)
        columns = slice(max(0, line.left - margin), line.right + margin)
        inner = slice(line.top, line.bottom), slice(line.left, line.right)
        is_frame = np.ones(pixels_HW.shape, dtype=bool)[rows, columns]
        is_frame[
            line.top - rows.start : line.bottom - rows.start,
            line.left - columns.start : line.right - columns.start,
        ] = False
        around = pixels_HW[rows, columns][is_frame]
        masked[inner] = np.median(around) if around.size else 0
    return masked


def _strokes(small: Grey) -> list[npt.NDArray[np.uint8]]:
    """Thin bright, and thin dark, things; 1 where they are."""
    kernel = np.ones((_STROKE, _STROKE), dtype=np.uint8)
    found = []
    for operation in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        strokes = cv2.morphologyEx(small, operation, kernel)
        found.append(cv2.threshold(strokes, int(_CONTRAST * 255), 1, cv2.THRESH_BINARY)[1])
    return found


def _characters(strokes: npt.NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of what has the size and fill of a character."""
    # Outlines of the few strokes, where labelling every pixel would take ten times as long.
    outlines, _ = cv2.findContours(strokes, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for left, top, width, height in map(cv2.boundingRect, outlines):
        if not (_HEIGHTS[0] <= height <= _HEIGHTS[1] and width <= 1.5 * height):
            continue
        area = cv2.countNonZero(strokes[top : top + height, left : left + width])
        if area >= 0.15 * width * height:
            boxes.append((left, top, left + width, top + height))
    return sorted(boxes)


def _is_near_border(box: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    """Whether either end of a line lies within the border."""
    left, top, right, bottom = box
    width, height = size
    side, above = _BORDER * width, _BORDER * height
    return left < side or right > width - side or top < above or bottom > height - above


def _lines(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Runs of characters from left to right, each beside the one before and of its height."""
    lines: list[list[tuple[int, int, int, int]]] = []
    for box in boxes:
        for line in lines:
            if _follows(line[-1], box):
                line.append(box)
                break
        else:
            lines.append([box])
    return [
        (line[0][0], min(b[1] for b in line), line[-1][2], max(b[3] for b in line))
        for line in lines
        if len(line) >= _FEWEST
    ]


def _follows(before: tuple[int, int, int, int], after: tuple[int, int, int, int]) -> bool:
    tall, other = before[3] - before[1], after[3] - after[1]
    apart = abs((before[1] + before[3]) - (after[1] + after[3])) / 2
    gap = after[0] - before[2]
    larger = max(tall, other)
    return -1 <= gap <= 1.2 * larger and apart <= 0.4 * larger and larger <= 1.8 * min(tall, other)
