"""Regions that are the same for every film: baselines, and what a finder falls back on."""

from pathlib import PurePosixPath

import cv2
import numpy as np

from shards_tool.contour.region import Contour, Mask
from shards_tool.film import Grey
from shards_tool.posture import ORIENTATIONS
from shards_tool.schema import CONTOUR_CHEST, CONTOUR_OUTSIDE

RECT_GRID = 20
"""Tokens on a side in the released code: 1280 pixels in tokens of 64."""

MEAN_SHAPE = (
    *((0.814, 0.193), (0.857, 0.264), (0.900, 0.447), (0.924, 0.697), (0.920, 0.740), (0.889, 0.787)),
    *((0.826, 0.803), (0.561, 0.818), (0.443, 0.814), (0.092, 0.764), (0.076, 0.654), (0.115, 0.428)),
    *((0.193, 0.213), (0.260, 0.150), (0.350, 0.096), (0.650, 0.092), (0.764, 0.143)),
)
"""x, y in widths and heights of an upright film: where 45% of the annotated `hannover` films have chest."""


def find_rect(pixels_HW: Grey, path: PurePosixPath) -> Contour:
    """The rectangle of the paper's released code, the same for every film, relative to the content.

    That stretches films to its square, and takes tokens int(G/4) + 1 to int(3G/4) down and int(G/8) + 1 to
    int(3G/4) across, of G = 20: `random_masking_yiliao` in HD_Xray_Pretrain_MAE/pretrain/models/mae.py of
    github.com/Event-AHU/Medical_Image_Analysis.
    """
    height, width = pixels_HW.shape
    mask_HW = np.full((height, width), CONTOUR_OUTSIDE, dtype=np.uint8)
    top, left, end = (int(share * RECT_GRID) + 1 for share in (0.25, 0.125, 0.75))
    rows = slice(round(top / RECT_GRID * height), round(end / RECT_GRID * height))
    columns = slice(round(left / RECT_GRID * width), round(end / RECT_GRID * width))
    mask_HW[rows, columns] = CONTOUR_CHEST
    return Contour(mask_hw=mask_HW, method="rect")


def find_nothing(pixels_HW: Grey, path: PurePosixPath) -> Contour:
    """No chest region at all, for masking that does not look at it."""
    return Contour(mask_hw=np.full(pixels_HW.shape, CONTOUR_OUTSIDE, dtype=np.uint8), method="none")


def mean_shape(height: int, width: int, orientation: str = "") -> Mask:
    """The mean chest of adult films, turned as the film is ("" counts as upright)."""
    turns = ORIENTATIONS.index(orientation) if orientation else 0
    points = np.array(MEAN_SHAPE) - 0.5
    for _ in range(turns):  # the film's upright content, a quarter turn anticlockwise
        points = np.stack([points[:, 1], -points[:, 0]], axis=1)
    mask_HW = np.full((height, width), CONTOUR_OUTSIDE, dtype=np.uint8)
    corners = np.rint((points + 0.5) * (width, height) - 0.5).astype(np.int32)
    cv2.fillConvexPoly(mask_HW, corners, CONTOUR_CHEST)
    return mask_HW
