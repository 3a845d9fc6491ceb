"""What a film looks like, in 256 bits, and which films look the same.

Look: the film shrunk to 64 x 64, its 255 lowest DCT coefficients after the mean (16 x 16), one bit
each for above or below their median ("pHash", Zauner 2010, with four times the usual bits). All
chest films resemble each other: with the usual 64 bits, different patients differ in as few bits
(8) as a film does from its own re-encoded copy (6). With 255, of 164 real films, different ones
differ in 54 bits or more; copies shrunk to 40% and recompressed at quality 50 in at most 8, to a
side of 224 in 6, with a gamma of 1.3 in 20. Not found are copies that were flipped or turned, most
with an equalised histogram, and one in ten with 8 pixels cut off all round.
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import numpy.typing as npt

from shards_tool.film import Grey

LOOK_BYTES = 32
NEAR_BITS = 20
"""Films whose looks differ in so many bits or fewer are copies of one another."""
_BANDS = NEAR_BITS + 1
"""Of two looks that differ in NEAR_BITS bits, one band of NEAR_BITS + 1 is the same in both."""
_BITS_PER_BAND = 12
_SIDE, _KEPT = 64, 16
_BLOCK = 64
"""Looks compared with the rest of their bucket at once: bounds the memory, and stays in the cache."""

_ROWS_AT_ONCE = 4096

Pairs = npt.NDArray[np.int64]
"""N x 2 rows."""
Looks = npt.NDArray[np.uint8]
"""N x LOOK_BYTES."""


def look_of(pixels_HW: Grey) -> bytes:
    """The look of a film, without letterbox borders."""
    if min(pixels_HW.shape) >= 8 * _SIDE:  # halved first, in a tenth of the time of a resize
        pixels_HW = cv2.pyrDown(pixels_HW)
    small = cv2.resize(pixels_HW, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float64)
    if pixels_HW.dtype == np.uint8:
        small *= 257
    # Rounded, so that coefficients that are equal in theory are equal on every machine.
    coefficients = np.rint(_dct_rows() @ small @ _dct_rows().T).ravel()[1:]
    return np.packbits(coefficients > np.median(coefficients)).tobytes()


def _dct_rows() -> npt.NDArray[np.float64]:
    """The first rows of the orthonormal DCT-II matrix."""
    frequency, place = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None, :]
    rows = np.sqrt(2 / _SIDE) * np.cos(np.pi * (2 * place + 1) * frequency / (2 * _SIDE))
    rows[0] /= np.sqrt(2)
    return rows


def distances(looks: Looks, other: Looks) -> npt.NDArray[np.int64]:
    """Bits in which looks differ, by broadcasting over all but the last axis."""
    differing = np.ascontiguousarray(looks).view(np.uint64) ^ np.ascontiguousarray(other).view(np.uint64)
    return np.bitwise_count(differing).sum(axis=-1, dtype=np.int64)


def near_pairs(looks: Looks) -> Iterator[Pairs]:
    """Pairs of rows that connect all rows that differ in NEAR_BITS bits or fewer.

    Of rows that are equal, only the first is compared with others. A pair may come repeatedly.
    """
    first, inverse = _distinct(looks)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(looks)))
    if len(repeated):
        yield np.stack([first[inverse][repeated], repeated], axis=1)
    for pairs in _near_distinct(looks[first]):
        yield first[pairs]


def near_matches(looks: Looks, others: Looks) -> npt.NDArray[np.int64]:
    """For each look the row of the nearest of the others, where one is near; else -1."""
    first, inverse = _distinct(np.concatenate([others, looks]))
    distinct = np.concatenate([others, looks])[first]
    nearest = np.where(first < len(others), 0, NEAR_BITS + 1)  # bits to the best match
    best = np.where(first < len(others), first, -1)
    is_other = first < len(others)
    for pairs in _near_distinct(distinct):
        for a, b in pairs[is_other[pairs].any(axis=1)].tolist():
            bits = int(distances(distinct[a], distinct[b]))
            for ours, other in ((a, b), (b, a)):
                if is_other[other] and (bits, first[other]) < (nearest[ours], best[ours]):
                    nearest[ours], best[ours] = bits, first[other]
    return best[inverse[len(others) :]]


def _distinct(looks: Looks) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first row of each distinct look, and for every row the place of its look among those."""
    words = np.ascontiguousarray(looks).view(np.uint64)
    order = np.lexsort(words.T)  # stable: of equal rows the first comes first
    is_new = np.ones(len(looks), dtype=bool)
    is_new[1:] = (words[order][1:] != words[order][:-1]).any(axis=1)
    inverse = np.empty(len(looks), dtype=np.int64)
    inverse[order] = np.cumsum(is_new) - 1
    return order[is_new].astype(np.int64), inverse


def _near_distinct(looks: Looks) -> Iterator[Pairs]:
    """All pairs of near rows.

    Rows are compared only where one of their bands agrees: the time grows with the films in a bucket,
    not with the square of all of them, and the memory linearly.
    """
    for band in range(_BANDS):
        codes = _band_codes(looks, band)
        order = np.argsort(codes, kind="stable")
        edges = np.flatnonzero(np.diff(codes[order].astype(np.int32), prepend=-1, append=-1))
        for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if end - start > 1:
                yield from _near_within(looks, order[start:end])


def _band_codes(looks: Looks, band: int) -> npt.NDArray[np.uint16]:
    """Every 21st bit: neighbours would be of one frequency, and in the lowest all chests agree."""
    codes = np.zeros(len(looks), dtype=np.uint16)
    for bit in range(band, _BANDS * _BITS_PER_BAND, _BANDS):
        codes = (codes << 1 | (looks[:, bit // 8] >> (7 - bit % 8) & 1)).astype(np.uint16)
    return codes


def _near_within(looks: Looks, rows: npt.NDArray[np.int64]) -> Iterator[Pairs]:
    words = looks[rows].view(np.uint64)
    for start in range(0, len(rows), _BLOCK):
        ours = words[start : start + _BLOCK]
        theirs = words[start:]
        bits = np.zeros((len(ours), len(theirs)), np.uint8)
        for word in range(words.shape[1]):  # at most 255 bits differ: the 256th is 0 in every look
            bits += np.bitwise_count(ours[:, None, word] ^ theirs[None, :, word])
        i, j = np.nonzero(bits <= NEAR_BITS)
        i, j = i[i < j], j[i < j]
        if len(i):
            yield rows[start + np.stack([i, j], axis=1)]


def components(count: int, pairs: Iterable[Pairs]) -> npt.NDArray[np.int64]:
    """For each of `count` things the lowest number of those that it is connected with."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for chunk in pairs:
        for start in range(0, len(chunk), _ROWS_AT_ONCE):  # as Python's integers they take ten times as much
            for a, b in chunk[start : start + _ROWS_AT_ONCE].tolist():
                low, high = sorted((root(a), root(b)))
                parent[high] = low
    return np.array([root(i) for i in range(count)], dtype=np.int64)
