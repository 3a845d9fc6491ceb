"""Lung vessels and bronchi: trees that fan out from the hila and thin towards the ribs."""

from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Float

from shards_tool.phantom.anatomy import SIDES, Across, Chest, Down, Field

FULL_SCALE_MM = 14.0
"""Thickness that the 8-bit canvas holds at 255."""


def grow_tree(
    chest: Chest, side: int, rng: np.random.Generator, *, roots: int, radius_mm: float
) -> Float[np.ndarray, "n 5"]:
    """Segments of one tree: `s0 y0 s1 y1` in mm and the radius, thickest generation first."""
    hilum_s, hilum_y = chest.hilum(side)
    # From steeply up to steeply down; the lower lobes, which are larger, get more of them.
    fan = np.linspace(-1.2, 1.3, roots) + rng.normal(0, 0.12, roots)
    angle = fan + rng.normal(0, 0.2, roots)
    radius = radius_mm * rng.uniform(0.75, 1.1, roots)
    place = np.stack([hilum_s - 13 + rng.normal(0, 4, roots), hilum_y + 4 + fan * 25], axis=1)
    segments = []
    for generation in range(16):
        length = rng.uniform(4.5, 10.5, len(angle)) * (0.8 + 0.12 * radius)
        step = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length[:, None]
        end = place + step
        segments.append(np.column_stack([place, end, radius]))
        s, y = end[:, 0], end[:, 1]
        alive = (radius > 0.31) & (s < chest.lateral(y, side) - 4) & (s > 12) & (y < chest.dome(s, side) + 12)
        place, angle, radius = end[alive], angle[alive], radius[alive]
        if generation % 2 == 0:
            angle = angle + rng.normal(0, 0.2, len(angle))
            radius = radius * 0.95
            continue
        # Murray's law: the cubes of the radii add up.
        share = rng.uniform(0.22, 0.5, len(angle))
        spread = rng.uniform(0.6, 1.35, len(angle)) * rng.choice((-1, 1), len(angle))
        place = np.concatenate([place, place])
        angle = np.concatenate([angle + spread * share, angle - spread * (1 - share)])
        radius = np.concatenate([radius * (1 - share) ** (1 / 3), radius * share ** (1 / 3)]) * 0.97
    return np.concatenate(segments)


def draw_vessels(chest: Chest, x: Across, y: Down) -> Field:
    """Millimetres of blood along each beam: arteries and veins, not yet confined to the lungs."""
    total = np.zeros((len(y), len(x)), np.float32)
    for tree in range(2):
        canvas = np.zeros((len(y), len(x)), np.uint8)
        for side in SIDES:
            rng = np.random.default_rng((chest.body.texture_seed, 20, tree, side > 0))
            segments = grow_tree(chest, side, rng, roots=8 - tree, radius_mm=3.3 - 0.4 * tree)
            _draw(canvas, segments, side, x, y)
        total += canvas.astype(np.float32)
    total *= np.float32(FULL_SCALE_MM / 255)
    total = cv2.GaussianBlur(total, (0, 0), 0.3 / float(x[1] - x[0]))
    return total


def draw_bronchi(chest: Chest, x: Across, y: Down) -> Field:
    """Millimetres of air in bronchi; they show only where the lung around them is airless."""
    canvas = np.zeros((len(y), len(x)), np.uint8)
    for side in SIDES:
        rng = np.random.default_rng((chest.body.texture_seed, 21, side > 0))
        _draw(canvas, grow_tree(chest, side, rng, roots=8, radius_mm=2.9), side, x, y)
    out = canvas.astype(np.float32) * np.float32(FULL_SCALE_MM / 255)
    return cv2.GaussianBlur(out, (0, 0), 0.6 / float(x[1] - x[0]))


def _draw(canvas: np.ndarray, segments: np.ndarray, side: int, x: Across, y: Down) -> None:
    step = float(x[1] - x[0])
    ends = segments[:, :4].copy()
    ends[:, 0::2] = (side * ends[:, 0::2] - x[0]) / step
    ends[:, 1::2] = (ends[:, 1::2] - y[0]) / step
    points = np.rint(ends * 16).astype(int).tolist()
    diameter = 2 * segments[:, 4]
    width = np.maximum(np.rint(diameter / step), 1)
    # A vessel thinner than a pixel covers a part of it.
    value = (0.785 * diameter + 0.3) * np.minimum(diameter / (width * step), 1)
    values = np.clip(np.rint(value * 255 / FULL_SCALE_MM), 1, 255).astype(int).tolist()
    widths = width.astype(int).tolist()
    # Thick over thin, so that a branch does not notch its stem; a second, narrower stroke rounds the tube.
    order = np.argsort(diameter, kind="stable").tolist()
    for i in order:
        x0, y0, x1, y1 = points[i]
        value = values[i] if widths[i] < 4 else values[i] * 5 // 8
        cv2.line(canvas, (x0, y0), (x1, y1), value, widths[i], cv2.LINE_AA, 4)
    for i in order:
        if widths[i] >= 4:
            x0, y0, x1, y1 = points[i]
            cv2.line(canvas, (x0, y0), (x1, y1), values[i], widths[i] * 5 // 8, cv2.LINE_AA, 4)


def draw_hila(chest: Chest, x: Across, y: Down) -> Field:
    """Interlobar arteries: thick, soft, curving down from each hilum."""
    step = float(x[1] - x[0])
    canvas = np.zeros((len(y), len(x)), np.uint8)
    for side in SIDES:
        s0, y0 = chest.hilum(side)
        path = np.array([(s0 - 4, y0 - 14), (s0 + 6, y0 - 3), (s0 + 10, y0 + 14), (s0 + 10, y0 + 36)])
        for (a, b), width in zip(pairwise(path), (19, 17, 13), strict=True):
            p, q = (
                (round((side * c[0] - x[0]) / step * 16), round((c[1] - y[0]) / step * 16)) for c in (a, b)
            )
            cv2.line(canvas, p, q, 200, max(1, round(width / step)), cv2.LINE_AA, 4)
    blurred = cv2.GaussianBlur(canvas, (0, 0), 3.2 / step)
    return blurred.astype(np.float32) * np.float32(FULL_SCALE_MM / 255)
