"""How a film stands and whether it is frontal, from a thumbnail: where tags are silent or wrong.

No model: a chest is compared with the average of synthetic frontal films (`shards_tool/phantom`), in
16 x 16 ranks of grey, so that exposure and window do not matter. `docs/shards.md` has the numbers.
"""

import cv2
import numpy as np
import numpy.typing as npt

from shards_tool.film import Grey

ORIENTATIONS = ("upright", "rotated90", "rotated180", "rotated270")
"""By the clockwise quarter turns that set the film upright."""

_CHEST = """
0001357887531000
0012357887532100
1223346776433221
3344335665334433
5554225775224555
6664235885324666
6764347997434676
6665458aa8545666
6665579bb9755666
677678acca876776
67889acddca98876
7789bcdeedcb9877
78abcdeeeedcba87
78acdeeffeedca87
79bcdeffffedcb97
89bcdeffffedcb98
"""
"""Grey in sixteen steps: bright shoulders, dark lungs on both sides of the spine, bright abdomen."""
_SIDE = 16
_LEAST_LIKENESS = 0.35
"""Correlation under which the picture is no chest that this can judge."""
_LEAST_MARGIN = {"upright": 0.1, "rotated90": 0.3, "rotated180": 0.5, "rotated270": 0.3}
"""Over upright, for upright over the best of the others: hardly any film is upside down, so that claim
needs more."""

_LEAST_NEGATIVE_LIKENESS = 0.5
_LEAST_NEGATIVE_PATTERN = 0.5
_LEAST_GAIN = 0.2
"""A header is right about black and white far more often than not: the picture has to contradict it twice."""

_LUNG_ROWS = slice(2, 11)
_LEAST_LUNG_PATTERN = 0.2
_MOST_LATERAL_PATTERN = 0.5
_MOST_LATERAL_WIDTH = 0.75
_AIR = 0.1


def thumbnail(pixels_HW: Grey) -> Grey:
    """Every so-many-th pixel of a film: enough to judge it by, for a hundredth of the time of a resize."""
    step = max(1, max(pixels_HW.shape) // 320)
    return np.ascontiguousarray(pixels_HW[::step, ::step])


def orientation_of(pixels_HW: Grey) -> str:
    """One of `ORIENTATIONS`, or "" where the picture does not tell."""
    film = _ranks(pixels_HW)
    likeness = _likeness(film)
    best = int(np.argmax(likeness))
    margin = likeness[best] - max(likeness[1:]) if best == 0 else likeness[best] - likeness[0]
    name = ORIENTATIONS[best]
    # A ramp from dark to bright is like a chest, too, but for the lungs.
    has_lungs = _lung_pattern(np.rot90(film, -best)) >= _LEAST_LUNG_PATTERN
    is_sure = likeness[best] >= _LEAST_LIKENESS and margin >= _LEAST_MARGIN[name]
    return name if has_lungs and is_sure else ""


def looks_inverted(pixels_HW: Grey) -> bool:
    """Whether a film of the chest seems to be a negative: its own negative is far more like a chest."""
    film = _ranks(pixels_HW)
    as_it_is, negative = _likeness(film), _likeness(-film)
    gain = max(negative) - max(as_it_is)
    if max(negative) < _LEAST_NEGATIVE_LIKENESS or gain < _LEAST_GAIN:
        return False
    pattern = _lung_pattern(np.rot90(-film, -int(np.argmax(negative))))
    other = _lung_pattern(np.rot90(film, -int(np.argmax(as_it_is))))
    return pattern >= _LEAST_NEGATIVE_PATTERN and pattern - other >= _LEAST_GAIN


def looks_lateral(pixels_HW: Grey) -> bool:
    """Whether an upright film of the chest seems to be taken from the side.

    From the side, a body is narrower than the film is high, with air before and behind it, and there is
    no bright middle between two dark lungs. Both must hold: a slim patient's frontal film has the middle.
    """
    is_narrow = _body_width(pixels_HW) < _MOST_LATERAL_WIDTH
    return is_narrow and _lung_pattern(_ranks(pixels_HW)) < _MOST_LATERAL_PATTERN


def _likeness(film: npt.NDArray[np.float32]) -> list[float]:
    """Correlation of ranks with a chest, by clockwise quarter turns of the film."""
    chest = _chest()
    return [float((np.rot90(film, -turns) * chest).mean()) for turns in range(4)]


def _chest() -> npt.NDArray[np.float32]:
    steps = np.array([[int(step, 16) for step in row] for row in _CHEST.split()], dtype=np.float32)
    return _normal(steps)


def _normal(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    values = values - values.mean()
    return values / max(float(np.sqrt((values**2).mean())), 1e-6)


def _ranks(pixels_HW: Grey) -> npt.NDArray[np.float32]:
    small = cv2.resize(pixels_HW, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    order = small.ravel().argsort(kind="stable")
    ranks = np.empty(_SIDE**2, dtype=np.float32)
    ranks[order] = np.arange(_SIDE**2)
    smooth = cv2.GaussianBlur(ranks.reshape(_SIDE, _SIDE), (0, 0), 1.0)
    return _normal(smooth.astype(np.float32))


def _lung_pattern(ranks: npt.NDArray[np.float32]) -> float:
    """Correlation with dark - bright - dark across the rows of the lungs, at the best sideways shift."""
    film, chest = ranks[_LUNG_ROWS], _chest()[_LUNG_ROWS]
    best = -1.0
    for shift in range(-3, 4):
        a = film[:, max(shift, 0) : _SIDE + min(shift, 0)]
        b = chest[:, max(-shift, 0) : _SIDE + min(-shift, 0)]
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        best = max(best, float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum() + 1e-9)))
    return best


def _body_width(pixels_HW: Grey) -> float:
    """Median width of what is not air at the sides, in heights of the film, below its upper quarter."""
    height, width = pixels_HW.shape
    small = cv2.resize(pixels_HW, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    low, high = np.percentile(small, (0.5, 99.0))
    is_body = (small >= low + _AIR * (high - low))[16:60]
    is_row = is_body.any(axis=1)
    if not is_row.any():
        return 0.0
    first, last = is_body[is_row].argmax(axis=1), 63 - is_body[is_row][:, ::-1].argmax(axis=1)
    return float(np.median(last - first + 1)) / 64 * width / height
