"""A forest plot as SVG: a value and its interval per line."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

ROW, LABELS, PLOT, HEAD = 24, 250, 420, 40
"""CSS pixels: height of a line, widths of the names and of the plot, height of the title."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    name: str
    value: float
    low: float
    high: float


def forest(title: str, bars: Sequence[Bar]) -> str:
    """The bars from top to bottom; a line at zero."""
    widest = max([abs(end) for bar in bars for end in (bar.low, bar.high)], default=1.0) * 1.05 or 1.0

    def across(x: float) -> float:
        return LABELS + PLOT * (x + widest) / (2 * widest)

    height = HEAD + ROW * (len(bars) + 1)
    parts = [
        f'<text x="{LABELS}" y="20" font-weight="bold">{html.escape(title)}</text>',
        f'<path d="M{across(0):.1f} {HEAD - 8}V{height - ROW}" stroke="#888" stroke-dasharray="4"/>',
    ]
    for i, bar in enumerate(bars):
        y = HEAD + ROW * i + ROW // 3
        colour = "#1565c0" if bar.low <= 0 <= bar.high else "#c62828"
        parts.append(f'<text x="{LABELS - 12}" y="{y + 4}" text-anchor="end">{html.escape(bar.name)}</text>')
        ends = f"M{across(bar.low):.1f} {y}H{across(bar.high):.1f}"
        parts.append(f'<path d="{ends}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{across(bar.value):.1f}" cy="{y}" r="4" fill="{colour}"/>')
    for x in (-widest / 1.05, 0, widest / 1.05):
        parts.append(f'<text x="{across(x):.1f}" y="{height - 6}" text-anchor="middle">{x:+.3f}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABELS + PLOT + 30}" height="{height}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + "</svg>\n"
    )
