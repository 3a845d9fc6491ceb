"""Whether heat maps point at the lesions: the pointing game and the overlap with boxes.

Shape suffixes: G patches along a side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

HOT = 0.5
"""A patch belongs to the heat map's region from this share of the largest heat on."""


class Box(NamedTuple):
    """Shares of the side of the square picture."""

    top: float
    left: float
    bottom: float
    right: float


class Found(NamedTuple):
    """What one film's heat map is worth."""

    hit: bool
    """The hottest patch's centre lies in a box."""
    iou: float
    """Area in both the hot region and the boxes, over the area in either."""
    area: float
    """Share of the picture that the boxes cover: how often a blind pointer would hit."""


def read_boxes(path: Path, side: int) -> dict[tuple[str, str], list[Box]]:
    """Boxes by (key, finding) from the file that `xpt-shards boxes` wrote for pictures of `side` pixels.

    Raises ValueError where the file is none.
    """
    try:
        rows = pq.read_table(path, columns=["key", "finding", *Box._fields]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"--boxes {path}: no table of boxes ({error}); make one with xpt-shards boxes"
        ) from error
    found: dict[tuple[str, str], list[Box]] = {}
    for row in rows:
        box = Box(*(row[edge] / side for edge in Box._fields))
        found.setdefault((row["key"], row["finding"]), []).append(box)
    return found


def within(window_4: Float[np.ndarray, "4"], boxes: Sequence[Box]) -> list[Box]:
    """Boxes of the stored square as shares of the part of it that is shown (`Batch.window_B4`)."""
    start_2, size_2 = window_4[:2], window_4[2:] - window_4[:2]
    shown = []
    for box in boxes:
        (top, left), (bottom, right) = np.clip((np.array(box).reshape(2, 2) - start_2) / size_2, 0, 1)
        shown.append(Box(top, left, bottom, right))
    return shown


def judge(heat_GG: Float[np.ndarray, "G G"], boxes: Sequence[Box]) -> Found:
    """A film's heat map against the boxes of the finding. A map without heat hits nothing."""
    grid = len(heat_GG)
    covered_GG = np.max(
        [_covered(box, grid) for box in boxes], 0
    )  # boxes may overlap; halves of a patch count
    row, column = divmod(int(heat_GG.argmax()), grid)
    y, x = (row + 0.5) / grid, (column + 0.5) / grid
    is_hot_GG = heat_GG >= HOT * heat_GG.max()
    any_heat = heat_GG.max() > 0
    both = (covered_GG * is_hot_GG).sum() if any_heat else 0.0
    either = covered_GG.sum() + is_hot_GG.sum() - both
    return Found(
        hit=bool(any_heat and any(b.top <= y < b.bottom and b.left <= x < b.right for b in boxes)),
        iou=float(both / either),
        area=float(covered_GG.mean()),
    )


def _covered(box: Box, grid: int) -> np.ndarray:
    """[G, G]: the share of each patch that lies in the box."""
    edge = np.arange(grid) / grid

    def along(low: float, high: float) -> np.ndarray:
        return np.clip((np.minimum(edge + 1 / grid, high) - np.maximum(edge, low)) * grid, 0, 1)

    return np.outer(along(box.top, box.bottom), along(box.left, box.right))
