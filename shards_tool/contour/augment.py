"""Films as they might have been: what `shards_tool/contour/train.py` shows the network, drawn per sample.

Geometry moves film and truth together; opaque bases, devices, text and exposure change the film only,
so that the lung under them stays lung. Grey is float32 in 0..1.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from shards_tool.contour.region import hull_of

Picture = npt.NDArray[Any]
Rng = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A film whose lungs are known."""

    grey_HW: Picture
    """float32, 0..1."""
    lung_HW: Picture
    """uint8, 0 or 1."""
    is_phantom: bool
    """A phantom's lungs end at the heart; V7's go on behind it."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    film_SS: Picture
    """float32, 0..1."""
    lung_SS: Picture
    chest_SS: Picture
    """Truth, float32, 0 or 1."""
    matters_SS: Picture
    """float32, 0 where the teacher does not say whether there is lung."""
    turn: int
    """Clockwise quarter turns that set the film upright; -1 where there is no chest."""
    is_negative: bool


def draw_sample(teacher: Teacher, rng: Rng, side: int) -> Sample:
    grey, lung = _moved(*_cut(teacher.grey_HW, teacher.lung_HW, rng), rng, side)
    content, grey, lung = grey >= 0, np.maximum(grey, 0), (lung > 0.5).astype(np.uint8)
    if rng.random() < 0.04:
        return _no_chest(grey, rng)
    if rng.random() < 0.25:
        grey = _opaque_base(grey, lung, rng)
    if rng.random() < 0.3:
        grey = _devices(grey, lung, rng)
    grey = _exposed(grey, rng) * content
    is_negative = bool(rng.random() < 0.08)
    if is_negative:
        grey = (1 - grey) * content
    chest = hull_of(lung)
    matters = np.ones_like(grey)
    if teacher.is_phantom:
        matters[(chest > 0) & (lung == 0)] = 0
    turn = int(rng.integers(1, 4)) if rng.random() < 0.1 else 0
    grey, lung, chest, matters = (np.rot90(a, turn).copy() for a in (grey, lung, chest, matters))
    return Sample(
        film_SS=grey.astype(np.float32),
        lung_SS=lung.astype(np.float32),
        chest_SS=chest.astype(np.float32),
        matters_SS=matters,
        turn=turn,
        is_negative=is_negative,
    )


def _cut(grey: Picture, lung: Picture, rng: Rng) -> tuple[Picture, Picture]:
    """The film's edges elsewhere: up to 15% off each side, lungs and all."""
    if rng.random() < 0.75:
        return grey, lung
    height, width = grey.shape
    top, bottom = rng.uniform(0, 0.15, 2) * height * (rng.random(2) < 0.6)
    left, right = rng.uniform(0, 0.15, 2) * width * (rng.random(2) < 0.6)
    part = np.s_[int(top) : height - int(bottom), int(left) : width - int(right)]
    return grey[part], lung[part]


def _moved(grey: Picture, lung: Picture, rng: Rng, side: int) -> tuple[Picture, Picture]:
    """Letterboxed, then scaled, turned, sheared, mirrored; -1 where the film does not reach."""
    height, width = grey.shape
    zoom = side / max(height, width) * np.exp(rng.normal(0, 0.07))
    if rng.random() < 0.1:
        zoom *= rng.uniform(0.6, 0.9)  # a child in the middle of a large film
    stretch = np.exp(rng.normal(0, 0.06))  # children are wide, the slim are long
    angle = np.deg2rad(rng.normal(0, 4) if rng.random() < 0.95 else rng.uniform(-30, 30))
    c, s = np.cos(angle), np.sin(angle)
    linear = np.array([[c, -s], [s, c]]) @ np.array([[1, rng.normal(0, 0.03)], [0, 1]])
    mirror = -1 if rng.random() < 0.5 else 1
    linear = linear @ np.diag([mirror * zoom * stretch, zoom / stretch])
    middle = side * (0.5 + rng.normal(0, 0.03, 2))
    matrix = np.column_stack([linear, middle - linear @ (width / 2, height / 2)])
    grey = cv2.warpAffine(grey, matrix, (side, side), flags=cv2.INTER_LINEAR, borderValue=-1)
    lung = cv2.warpAffine(lung.astype(np.float32), matrix, (side, side), flags=cv2.INTER_LINEAR)
    return grey, lung


def _opaque_base(grey: Picture, lung: Picture, rng: Rng) -> Picture:
    """Fluid or consolidation from the diaphragm up, on one side or both, as bright as what lies below."""
    if not lung.any():
        return grey
    side = grey.shape[0]
    columns = np.flatnonzero(lung.any(axis=0))
    middle = (columns[0] + columns[-1]) / 2
    x, y = np.arange(side)[None, :], np.arange(side)[:, None]
    reach = cv2.GaussianBlur(lung.astype(np.float32), (0, 0), 3)
    out = grey
    for sign in (-1, 1) if rng.random() < 0.3 else (rng.choice((-1, 1)),):
        half = lung * (sign * (x - middle) > 0)
        rows = np.flatnonzero(half.any(axis=1))
        if len(rows) < 20:
            continue
        share = rng.uniform(0.05, 0.5) if rng.random() < 0.85 else rng.uniform(0.5, 1.0)
        level = rows[-1] - share * len(rows) + rng.normal(0, 0.3) * (x - middle) * sign
        wobble = cv2.resize(
            rng.normal(0, 1, (6, 6)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
        )
        soft = rng.uniform(2, 16)
        fluid = 1 / (1 + np.exp(np.clip((level - y + 4 * wobble) / soft, -30, 30)))
        bright = np.quantile(grey[hull_of(lung) > 0], rng.uniform(0.8, 0.97))
        weight = fluid * rng.uniform(0.5, 1.0) * np.maximum(reach, 0.0) * (sign * (x - middle) > 0)
        out = out + weight * np.maximum(bright - out, 0)
    return out.astype(np.float32)


def _devices(grey: Picture, lung: Picture, rng: Rng) -> Picture:
    """Leads, tubes, a pacemaker, electrodes, letters."""
    side = grey.shape[0]
    layer = np.zeros((side, side), np.uint8)
    for _ in range(rng.integers(0, 4)):
        points = np.cumsum(rng.normal(0, 0.18, (5, 2)), axis=0) + rng.uniform(0.2, 0.8, 2)
        t = np.linspace(0, 4, 60)
        curve = np.stack([np.interp(t, range(5), points[:, i]) for i in (0, 1)], axis=1) * side
        curve = cv2.GaussianBlur(curve, (1, 15), 0)
        cv2.polylines(
            layer,
            [curve.astype(np.int32)],
            False,
            int(rng.integers(90, 255)),
            int(rng.integers(1, 4)),
            cv2.LINE_AA,
        )
    for _ in range(rng.integers(0, 3)):
        place = tuple(int(v) for v in rng.integers(0, side, 2))
        size = tuple(int(v) for v in rng.integers(2, 14, 2))
        cv2.ellipse(
            layer,
            place,
            size,
            float(rng.uniform(0, 180)),
            0,
            360,
            int(rng.integers(90, 255)),
            -1,
            cv2.LINE_AA,
        )
    for _ in range(rng.integers(0, 3)):
        text = str(rng.choice(("L", "R", "AP", "PORTABLE", "SUPINE", "ERECT", "12:45", "Bett", "liegend")))
        place = (
            int(rng.integers(0, side - 20)),
            int(rng.choice((rng.integers(8, 40), rng.integers(side - 40, side)))),
        )
        cv2.putText(
            layer, text, place, cv2.FONT_HERSHEY_SIMPLEX, float(rng.uniform(0.25, 0.8)), 255, 1, cv2.LINE_AA
        )
    shade = layer.astype(np.float32) / 255
    value = 1.0 if rng.random() < 0.85 else 0.0
    return grey + shade * (value - grey)


def _exposed(grey: Picture, rng: Rng) -> Picture:
    side = grey.shape[0]
    if rng.random() < 0.25:
        field = cv2.resize(
            rng.normal(0, 0.12, (3, 3)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
        )
        grey = grey + field
    if rng.random() < 0.1:
        local = cv2.createCLAHE(float(rng.uniform(1, 4)), (4, 4))
        grey = local.apply((np.clip(grey, 0, 1) * 255).astype(np.uint8)).astype(np.float32) / 255
    if rng.random() < 0.15:
        grey = cv2.GaussianBlur(grey, (0, 0), float(rng.uniform(0.4, 1.6)))
    grey = np.clip(grey, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
    grey = (grey - 0.5) * np.float32(np.exp(rng.normal(0, 0.2))) + np.float32(0.5 + rng.normal(0, 0.06))
    if rng.random() < 0.2:
        grey = grey + rng.normal(0, rng.uniform(0.01, 0.06), grey.shape)
    if rng.random() < 0.15:  # collimation, or a light rim
        value, edges = float(rng.choice((0.0, 0.0, 1.0))), rng.integers(0, side // 12, 4)
        for turn, edge in enumerate(edges):
            np.rot90(grey, turn)[:edge] = value
    return np.clip(grey, 0, 1).astype(np.float32)


def _no_chest(grey: Picture, rng: Rng) -> Sample:
    """Noise, clouds, or a film cut to pieces: what the network must find nothing in."""
    side = grey.shape[0]
    kind = rng.integers(3)
    if kind == 0:
        pieces = [
            np.rot90(p, int(rng.integers(4))) for row in np.split(grey, 4) for p in np.split(row, 4, axis=1)
        ]
        order = rng.permutation(16)
        grey = np.concatenate(
            [np.concatenate([pieces[i] for i in order[r : r + 4]], 1) for r in range(0, 16, 4)]
        )
    else:
        coarse = rng.random((int(rng.integers(2, 40)),) * 2 if kind == 1 else (side, side)).astype(np.float32)
        grey = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    nothing = np.zeros((side, side), np.float32)
    return Sample(
        film_SS=np.clip(grey, 0, 1).astype(np.float32),
        lung_SS=nothing,
        chest_SS=nothing,
        matters_SS=nothing + 1,
        turn=-1,
        is_negative=False,
    )
