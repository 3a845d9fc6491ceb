"""Other ways to find a chest, for `benchmarks/contour.py`: thresholds and morphology, and lungs-finder."""

import subprocess
import tempfile
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from shards_tool.contour.region import Contour, hull_of
from shards_tool.film import Grey
from shards_tool.letterbox import contour_mask
from shards_tool.schema import CONTOUR_CHEST

_SIDE = 256
_LUNGS_FINDER = """
import sys, cv2, lungs_finder
film = cv2.imread(sys.argv[1], cv2.IMREAD_GRAYSCALE)
found = lungs_finder.get_lungs(film)
if found is not None and found.size:
    # It returns a view of the film; where that begins says where the lungs are.
    offset = found.__array_interface__["data"][0] - film.__array_interface__["data"][0]
    print(offset % film.strides[0], offset // film.strides[0], found.shape[1], found.shape[0])
"""


def find_classically(pixels_HW: Grey, path: PurePosixPath) -> Contour:
    """Equalise locally, Otsu in the middle, drop what touches two borders, the two largest, close, hull."""
    height, width = pixels_HW.shape
    small = cv2.resize(pixels_HW, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = cv2.normalize(small, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    grey = cv2.GaussianBlur(cv2.createCLAHE(2.0, (4, 4)).apply(grey), (0, 0), 3)
    level, _ = cv2.threshold(grey[26:230, 26:230].reshape(-1, 1), 0, 255, cv2.THRESH_OTSU)
    is_dark = (grey < level).astype(np.uint8)
    is_dark = cv2.morphologyEx(is_dark, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
    count, labels, stats, centres = cv2.connectedComponentsWithStats(is_dark)
    pieces = []
    for i in range(1, count):
        left, top, w, h, area = stats[i]
        edges = (left == 0) + (top == 0) + (left + w == _SIDE) + (top + h == _SIDE)
        if area > 0.02 * _SIDE**2 and edges < 2 and 0.15 < centres[i][1] / _SIDE < 0.8:
            pieces.append((area, i))
    best = [i for _, i in sorted(pieces, reverse=True)[:2]]
    lung = np.isin(labels, best).astype(np.uint8)
    lung = cv2.morphologyEx(lung, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (21, 21)))
    mask = contour_mask(lung, hull_of(lung))
    large = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return Contour(mask_hw=large, method="classical")


class LungsFinder:
    """Its rectangle, in a film of 512 pixels as its examples have; nothing where it finds none."""

    def __init__(self, python: Path) -> None:
        self._python = python

    def __call__(self, pixels_HW: Grey, path: PurePosixPath) -> Contour:
        scale = 512 / max(pixels_HW.shape)
        small = cv2.resize(pixels_HW, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        mask = np.zeros(pixels_HW.shape, np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            film = str(Path(folder) / "film.png")
            cv2.imwrite(film, small)
            command = [str(self._python), "-c", _LUNGS_FINDER, film]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
        if run.stdout.strip():
            x, y, w, h = (round(int(value) / scale) for value in run.stdout.split())
            mask[y : y + h, x : x + w] = CONTOUR_CHEST
        return Contour(mask_hw=mask, method="lungs-finder")
