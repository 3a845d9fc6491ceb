import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards_tool.likeness import (
    LOOK_BYTES,
    NEAR_BITS,
    Looks,
    components,
    distances,
    look_of,
    near_matches,
    near_pairs,
)
from tests.shards_tool.archive import textured


def bits_between(one: bytes, other: bytes) -> int:
    return int(distances(*(np.frombuffer(look, np.uint8) for look in (one, other))))


def test_copies_of_a_film_look_the_same_and_other_films_do_not():
    films = [textured(seed) for seed in range(12)]
    looks = [look_of(film) for film in films]
    for film, look in zip(films, looks, strict=True):
        small = cv2.resize(film, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
        recompressed = cv2.imdecode(
            cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE
        )
        assert recompressed is not None and bits_between(look, look_of(recompressed)) <= NEAR_BITS
        assert bits_between(look, look_of(film.astype(np.uint16) * 257)) <= 2
    for i, one in enumerate(looks):
        assert all(bits_between(one, other) > 2 * NEAR_BITS for other in looks[:i])


def test_a_blank_film_has_a_look_too():
    assert look_of(np.full((100, 80), 7, np.uint8)) == bytes(LOOK_BYTES)


def some_looks(seed: int, count: int) -> Looks:
    """Random looks, and changed copies of them up to just beyond what is near; some films are repeated."""
    rng = np.random.default_rng(seed)
    looks = rng.integers(0, 256, (count, LOOK_BYTES), dtype=np.uint8)
    copies = np.unpackbits(looks[rng.integers(0, count, count)], axis=1)
    for copy in copies:
        copy[rng.choice(8 * LOOK_BYTES - 1, rng.integers(0, NEAR_BITS + 4), replace=False)] ^= 1
    everything = np.concatenate([looks, np.packbits(copies, axis=1), looks[: count // 4]])
    return everything[rng.permutation(len(everything))]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_the_banded_search_finds_what_comparing_all_pairs_finds(seed: int, count: int):
    looks = some_looks(seed, count)
    is_near = distances(looks[:, None], looks[None]) <= NEAR_BITS
    all_pairs = np.argwhere(np.triu(is_near, 1))
    found = components(len(looks), near_pairs(looks))
    np.testing.assert_array_equal(found, components(len(looks), [all_pairs]))
    ours, others = looks[: len(looks) // 2], looks[len(looks) // 2 :]
    matches = near_matches(ours, others)
    bits = distances(ours[:, None], others[None])
    np.testing.assert_array_equal(matches >= 0, (bits <= NEAR_BITS).any(axis=1))
    for i in np.flatnonzero(matches >= 0):
        assert bits[i, matches[i]] == bits[i].min()


def test_no_films_have_no_pairs():
    nothing = np.empty((0, LOOK_BYTES), np.uint8)
    assert list(near_pairs(nothing)) == [] and len(near_matches(nothing, nothing)) == 0
    assert near_matches(some_looks(0, 3), nothing).tolist() == [-1] * 6


@pytest.mark.parametrize("order", [[(0, 3), (3, 5), (1, 2)], [(5, 3), (2, 1), (3, 0)]])
def test_components_are_named_by_their_lowest_member(order: list[tuple[int, int]]):
    assert components(6, [np.array(order)]).tolist() == [0, 1, 1, 0, 4, 0]
