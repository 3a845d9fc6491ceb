"""Crop windows and mirroring: a pure function of (seed, position, content box, square to crop from)."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8

from kernels.philox import STREAM_CROP, STREAM_FLIP, draws
from shards_tool import schema

CHEST_MARGIN = 0.05
"""Room on each side of the chest, as a share of the longer side of the box around it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """The part of each stored square that becomes the model's square, as shares of its side.

    Rows are (vertical, horizontal). Start is beyond end where the picture is mirrored.
    """

    start_B2: Float32[np.ndarray, "B 2"]
    end_B2: Float32[np.ndarray, "B 2"]


def full_frames(count: int) -> Windows:
    return Windows(
        start_B2=np.zeros((count, 2), dtype=np.float32), end_B2=np.ones((count, 2), dtype=np.float32)
    )


def chest_squares(contours: list[UInt8[np.ndarray, "_"]]) -> Windows:
    """The smallest square with room around each film's chest that lies in the stored square.

    Args:
        contours: the bytes of the contour pictures. Where one marks no chest, the square is the full frame.
    """
    squares = full_frames(len(contours))
    for n, contour in enumerate(contours):
        mask_CC = cv2.imdecode(contour, cv2.IMREAD_GRAYSCALE)
        if mask_CC is None:
            continue  # DALI will say what is wrong with it
        inside_2 = [np.flatnonzero((mask_CC > schema.CONTOUR_OUTSIDE).any(axis=1 - axis)) for axis in (0, 1)]
        if not len(inside_2[0]):
            continue
        first_2 = np.array([inside[0] for inside in inside_2]) / len(mask_CC)
        last_2 = np.array([inside[-1] + 1 for inside in inside_2]) / len(mask_CC)
        side = min(1.0, (last_2 - first_2).max() * (1 + 2 * CHEST_MARGIN))
        squares.start_B2[n] = np.clip((first_2 + last_2 - side) / 2, 0, 1 - side)
        squares.end_B2[n] = squares.start_B2[n] + side
    return squares


def draw_windows(
    position_B: Int64[np.ndarray, "B"],
    box_B4: Int64[np.ndarray, "B 4"],
    squares: Windows,
    *,
    stored_side: int,
    seed: int,
    crop_scale: tuple[float, float],
    flip: float,
) -> Windows:
    """Square windows of a uniform share of the area of `squares` in `crop_scale`, mirrored with probability
    `flip`.

    The place is uniform among those that waste least on letterbox bars: inside the content where it is
    larger than the window, around it where it is smaller. `box_B4` is in pixels of the stored square.
    """
    uniform_B3 = _uniform(seed, position_B, STREAM_CROP, 3)
    low, high = crop_scale
    whole_B2 = (squares.end_B2 - squares.start_B2).astype(np.float64)
    side_B1 = np.sqrt(low + (high - low) * uniform_B3[:, :1]) * whole_B2[:, :1]
    content_start_B2 = box_B4[:, :2] / stored_side
    flush_end_B2 = box_B4[:, 2:] / stored_side - side_B1
    least_B2, most_B2 = squares.start_B2, squares.start_B2 + whole_B2 - side_B1
    first_B2 = np.clip(np.minimum(content_start_B2, flush_end_B2), least_B2, most_B2)
    last_B2 = np.clip(np.maximum(content_start_B2, flush_end_B2), least_B2, most_B2)
    start_B2 = first_B2 + (last_B2 - first_B2) * uniform_B3[:, 1:]
    end_B2 = start_B2 + side_B1
    is_mirrored_B2 = np.zeros((len(position_B), 2), dtype=bool)
    is_mirrored_B2[:, 1] = _uniform(seed, position_B, STREAM_FLIP, 1)[:, 0] < flip
    return Windows(
        start_B2=np.where(is_mirrored_B2, end_B2, start_B2).astype(np.float32),
        end_B2=np.where(is_mirrored_B2, start_B2, end_B2).astype(np.float32),
    )


def valid_patches(
    windows: Windows, box_B4: Int64[np.ndarray, "B 4"], *, stored_side: int, grid: int
) -> Bool[np.ndarray, "B L"]:
    """True where a patch of the cropped square shows some of the content box, not letterbox bars only."""
    edge_G1 = np.arange(grid + 1) / grid
    start_B21, end_B21 = (x.astype(np.float64)[:, :, None] for x in (windows.start_B2, windows.end_B2))
    edge_B2G1 = (start_B21 + (end_B21 - start_B21) * edge_G1) * stored_side
    near_B2G = np.minimum(edge_B2G1[..., :-1], edge_B2G1[..., 1:])
    far_B2G = np.maximum(edge_B2G1[..., :-1], edge_B2G1[..., 1:])
    overlaps_B2G = (near_B2G < box_B4[:, 2:, None]) & (far_B2G > box_B4[:, :2, None])
    return (overlaps_B2G[:, 0, :, None] & overlaps_B2G[:, 1, None, :]).reshape(len(box_B4), grid * grid)


def _uniform(seed: int, position_B: Int64[np.ndarray, " B"], stream: int, count: int) -> np.ndarray:
    """`count` numbers in (0, 1) for each position, float64."""
    return (draws(seed, torch.from_numpy(position_B), stream, count).numpy() + 0.5) / 2**32
