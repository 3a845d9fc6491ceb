"""Charts, by the places of what they draw."""

import re

import numpy as np
import pytest

from xpt.monitoring.charts import HEIGHT, POINTS, TOP, WIDTH, Line, chart


def line(x, y, name: str = "a", band=None) -> Line:
    return Line(
        name=name,
        x_T=np.array(x, dtype=float),
        y_T=np.array(y, dtype=float),
        band_T2=None if band is None else np.array(band, dtype=float),
    )


def places(svg: str, kind: str = "polyline") -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]
        for points in re.findall(rf'<{kind} points="([^"]*)"', svg)
    ]


def test_values_are_placed_in_proportion_and_inside():
    ((first, middle, last),) = places(chart("t", [line([0, 50, 100], [0, 5, 10])]))
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.11)
    assert 0 < first[0] < last[0] < WIDTH
    assert HEIGHT > first[1] > last[1] == TOP


def test_a_logarithmic_axis_places_decades_at_equal_distances():
    ((a, b, c),) = places(chart("t", [line([0, 1, 2, 3], [1, 10, 0, 100])], is_log=True))
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.11)


def test_gaps_are_left_out_and_no_values_say_so():
    assert len(places(chart("t", [line([0, 1, 2], [1, np.nan, 3])]))[0]) == 2
    assert "nothing yet" in chart("t", [line([], [])])
    assert "nothing yet" in chart("t", [line([1], [np.inf])])


def test_long_lines_are_drawn_as_means_of_stretches():
    ((*points,),) = places(chart("t", [line(np.arange(3 * POINTS), np.tile([0, 0, 3], POINTS))]))
    assert len(points) == POINTS
    assert len({y for _, y in points}) == 1


@pytest.mark.parametrize("values", [[5, 5], [0, 0], [-2, -2], [1e-9, 3e9], [-1, 1]])
def test_any_span_has_an_axis(values):
    (points,) = places(chart("t", [line([0, 1], values)]))
    assert all(0 <= y <= HEIGHT for _, y in points)


def test_bands_enclose_their_lines_and_names_are_escaped():
    svg = chart("a<b", [line([0, 1], [2, 3], band=[[1, 4], [2, 5]]), line([0, 1], [0, 9], name="x&y")])
    (band,) = places(svg, "polygon")
    (first, last), _ = places(svg)
    assert band[0][1] < first[1] < band[3][1]
    assert band[1][1] < last[1] < band[2][1]
    assert "a&lt;b" in svg and "x&amp;y" in svg


def test_zero_is_shown_where_asked():
    ((bottom, _),) = places(chart("t", [line([0, 1], [90, 100])], from_zero=True))
    assert bottom[1] < TOP + 0.3 * HEIGHT
