"""Line charts as SVG text, for pages that must open without a network.

Shape suffix: T points of a line.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 330, 200
"""CSS pixels."""
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 24
"""Margins around the plot itself."""
POINTS = 300
"""A line with more points is drawn as the means of this many stretches of it."""
COLOURS = ("#1565c0", "#c62828", "#2e7d32", "#8e6c00")


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    name: str
    x_T: Float[np.ndarray, "T"]
    y_T: Float[np.ndarray, "T"]
    """Values that are not finite are left out."""
    band_T2: Float[np.ndarray, "T 2"] | None = None
    """Lower and upper ends of an interval, shaded."""


def chart(title: str, lines: Sequence[Line], *, is_log: bool = False, from_zero: bool = False) -> str:
    """A <figure> with its title and, for more than one line, a legend; x is a number of images.

    `is_log` draws a logarithmic y axis, on which values that are not positive are left out; `from_zero`
    shows zero whatever the values.
    """
    drawn = [_clean(line, is_log) for line in lines]
    drawn = [line for line in drawn if len(line.x_T)]
    caption = html.escape(title)
    if len(lines) > 1:
        caption += ": " + ", ".join(
            f'<b style="color:{COLOURS[i]}">{html.escape(line.name)}</b>' for i, line in enumerate(lines)
        )
    if not drawn:
        return f"<figure><figcaption>{caption}</figcaption><p>nothing yet</p></figure>"
    x_low, x_high = _span([line.x_T for line in drawn])
    values = [line.y_T for line in drawn] + [line.band_T2 for line in drawn if line.band_T2 is not None]
    if from_zero:
        values.append(np.zeros(1))
    y_ticks = _log_ticks(*_span(values)) if is_log else _ticks(*_span(values), 4)
    y_low, y_high = min(y_ticks), max(y_ticks)
    scale = math.log10 if is_log else float

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / ((x_high - x_low) or 1)

    def down(y: float) -> float:
        share = (scale(y) - scale(y_low)) / ((scale(y_high) - scale(y_low)) or 1)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    parts = []
    for tick in y_ticks:
        y = down(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e3e3e3"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in _ticks(x_low, x_high, 3):
        if x_low <= tick <= x_high:
            parts.append(
                f'<text x="{across(tick):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_number(tick)}</text>'
            )
    colour_of = {line.name: COLOURS[i] for i, line in enumerate(lines)}
    for line in drawn:
        colour = colour_of[line.name]
        if line.band_T2 is not None:
            there = [(across(x), down(high)) for x, (_, high) in zip(line.x_T, line.band_T2, strict=True)]
            back = [(across(x), down(low)) for x, (low, _) in zip(line.x_T, line.band_T2, strict=True)]
            parts.append(f'<polygon points="{_points(there + back[::-1])}" fill="{colour}" opacity=".15"/>')
        place = [(across(x), down(y)) for x, y in zip(line.x_T, line.y_T, strict=True)]
        parts.append(
            f'<polyline points="{_points(place)}" stroke="{colour}" stroke-width="1.6" fill="none"/>'
        )
        x, y = place[-1]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-size="11">'
    return f"<figure><figcaption>{caption}</figcaption>{svg}{''.join(parts)}</svg></figure>"


def _clean(line: Line, is_log: bool) -> Line:
    keep_T = np.isfinite(line.y_T)
    if is_log:
        keep_T &= line.y_T > 0
    x_T, y_T = line.x_T[keep_T], line.y_T[keep_T]
    band_T2 = None if line.band_T2 is None else line.band_T2[keep_T]
    if band_T2 is None and len(x_T) > POINTS:
        x_T, y_T = (np.array([part.mean() for part in np.array_split(v, POINTS)]) for v in (x_T, y_T))
    return Line(name=line.name, x_T=x_T, y_T=y_T, band_T2=band_T2)


def _span(values: Sequence[np.ndarray]) -> tuple[float, float]:
    flat = np.concatenate([v.ravel() for v in values])
    flat = flat[np.isfinite(flat)]
    return float(flat.min()), float(flat.max())


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about `count`, that enclose the span."""
    if low == high:
        low, high = (0.0, 2 * high) if high > 0 else (2 * low, 0.0) if low < 0 else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose the span."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**p for p in range(first, max(last, first + 1) + 1)]


def _number(x: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:g}{unit}"
    return f"{x:.3g}"


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
