import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpt.data.order import (
    SampleOrder,
    evaluation_positions,
    global_batch,
    micro_batch_size,
    rank_slice,
    reserve,
)

SIZES = [5, 1, 7, 3, 4, 4, 2]
TOTAL = sum(SIZES)


def located(order: SampleOrder, first: int, last: int) -> list[tuple[int, int, int]]:
    where = order.locate(np.arange(first, last))
    return list(zip(where.epoch_N.tolist(), where.shard_N.tolist(), where.index_N.tolist(), strict=True))


EVERY_SAMPLE = sorted((shard, index) for shard, size in enumerate(SIZES) for index in range(size))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seed=st.integers(0, 2**64 - 1),
    window=st.integers(1, 15),
    epoch=st.integers(0, 2**31),
)
def test_each_sample_comes_once_per_epoch(sizes: list[int], seed: int, window: int, epoch: int):
    total = sum(sizes)
    where = located(SampleOrder(sizes, seed=seed, window=window), epoch * total, (epoch + 1) * total)
    assert {e for e, _, _ in where} == {epoch}
    assert sorted(w[1:] for w in where) == [(s, i) for s, size in enumerate(sizes) for i in range(size)]


def test_epochs_follow_without_a_gap_and_differ():
    order = SampleOrder(SIZES, seed=3, window=2)
    two = located(order, 0, 2 * TOTAL)
    assert [e for e, _, _ in two] == [0] * TOTAL + [1] * TOTAL
    first, second = [w[1:] for w in two[:TOTAL]], [w[1:] for w in two[TOTAL:]]
    assert sorted(first) == sorted(second) == EVERY_SAMPLE
    assert first != second


@pytest.mark.parametrize("start", [0, 1, 11, TOTAL - 1, TOTAL, 3 * TOTAL + 5])
def test_any_position_can_be_started_from(start: int):
    whole = located(SampleOrder(SIZES, seed=5, window=3), 0, 5 * TOTAL)
    assert located(SampleOrder(SIZES, seed=5, window=3), start, start + TOTAL) == whole[start : start + TOTAL]


def test_positions_may_come_in_any_order():
    order = SampleOrder(SIZES, seed=5, window=3)
    positions = np.random.default_rng(0).permutation(3 * TOTAL)
    shuffled = order.locate(positions)
    straight = order.locate(np.arange(3 * TOTAL))
    np.testing.assert_array_equal(shuffled.shard_N, straight.shard_N[positions])
    np.testing.assert_array_equal(shuffled.index_N, straight.index_N[positions])


def test_seeds_and_windows_change_the_order():
    orders = [
        located(SampleOrder(SIZES, seed=s, window=w), 0, TOTAL)
        for s, w in ((0, 2), (1, 2), (2**63, 2), (0, 3))
    ]
    assert len({tuple(o) for o in orders}) == len(orders)


def test_a_window_opens_no_more_shards_than_it_holds():
    sizes = [6] * 20
    where = SampleOrder(sizes, seed=1, window=4).locate(np.arange(sum(sizes)))
    for shards in where.shard_N.reshape(5, 24):
        assert len(np.unique(shards)) == 4


def test_samples_of_a_window_are_mixed():
    shards = SampleOrder([100] * 4, seed=1, window=4).locate(np.arange(400)).shard_N
    # An independent shuffle changes shard at 3 of 4 places: 300 of 399, standard deviation 8.7.
    assert 260 < np.count_nonzero(np.diff(shards)) < 340


def test_order_follows_the_rule_written_plainly():
    def permutation(use: int, epoch: int, window: int, count: int) -> list[int]:
        counter = np.array([0, epoch, window, 0], dtype=np.uint64)
        words = (
            np.random.Philox(key=np.array([77, use], dtype=np.uint64), counter=counter)
            .random_raw(count)
            .tolist()
        )
        return sorted(range(count), key=lambda i: words[i])

    expected = []
    for epoch in range(3):
        shards = permutation(0, epoch, 0, len(SIZES))
        for window, first in enumerate(range(0, len(SIZES), 3)):
            samples = [(s, i) for s in shards[first : first + 3] for i in range(SIZES[s])]
            expected += [(epoch, *samples[j]) for j in permutation(1, epoch, window, len(samples))]
    assert located(SampleOrder(SIZES, seed=77, window=3), 0, 3 * TOTAL) == expected


def test_order_is_the_one_that_earlier_releases_gave():
    """A changed value here means that no run can be resumed: never update it, find out what changed."""
    order = SampleOrder(SIZES, seed=20240424, window=3)
    assert located(order, TOTAL - 4, TOTAL + 6) == [
        *((0, 4, 3), (0, 4, 2), (0, 4, 1), (0, 4, 0)),
        *((1, 2, 1), (1, 3, 2), (1, 2, 2), (1, 3, 1), (1, 3, 0), (1, 4, 0)),
    ]
    assert [reserve(20240424, 7, attempt, 1_000_000) for attempt in range(4)] == [
        691585,
        730493,
        141144,
        230952,
    ]


def test_a_hundred_million_samples_cost_little_memory():
    order = SampleOrder(np.full(40_000, 2_500), seed=0, window=32)
    for start in (0, 99_999_990, 12_345_678_901):
        where = order.locate(np.arange(start, start + 20))
        assert ((where.index_N >= 0) & (where.index_N < 2_500)).all()
    held = [order._epoch(0).shards, order._epoch(0).starts, order._window_order(0, 0)]
    assert sum(array.nbytes for array in held) < 2_000_000
    for epoch in range(5):
        order.locate(np.arange(epoch * 100_000_000, epoch * 100_000_000 + 200_000, 20_000))
    assert order._epoch.cache_info().currsize <= 2
    assert order._window_order.cache_info().currsize <= 3


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_micro_steps_share_out_the_global_batch(world_size: int, accumulation: int):
    slices = [
        rank_slice(5, 24, world_size=world_size, rank=r, micro_step=m, accumulation=accumulation)
        for m in range(accumulation)
        for r in range(world_size)
    ]
    assert {len(s) for s in slices} == {24 // (world_size * accumulation)}
    np.testing.assert_array_equal(np.concatenate(slices), global_batch(5, 24))


def test_batch_that_cannot_be_shared_out_names_one_that_can():
    with pytest.raises(
        ValueError, match=r"got 100 images for 8 ranks x 3 accumulation steps.*multiple of 24.*to 96"
    ):
        micro_batch_size(100, world_size=8, accumulation=3)
    with pytest.raises(ValueError, match="set the batch to 24"):
        micro_batch_size(5, world_size=8, accumulation=3)


def test_stand_ins_are_spread_and_differ_by_attempt():
    drawn = np.array([[reserve(9, position, attempt, 50) for attempt in range(2)] for position in range(500)])
    assert len(np.unique(drawn)) == 50
    assert (drawn[:, 0] != drawn[:, 1]).mean() > 0.9
    assert reserve(9, 1, 0, 50) == reserve(9, 1, 0, 50)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_counts_each_film_once_with_equal_forwards(world_size: int, count: int):
    shares = [evaluation_positions(count, batch=2, world_size=world_size, rank=r) for r in range(world_size)]
    assert len({rows.shape for rows, _ in shares}) == 1
    counted = np.concatenate([rows[is_counted] for rows, is_counted in shares])
    assert sorted(counted.tolist()) == list(range(count))
    assert max(rows.max() for rows, _ in shares) < count


@pytest.mark.parametrize(
    ("sizes", "seed", "window", "message"),
    [
        ([], 0, 1, "shard_sizes"),
        ([0], 0, 1, "shard_sizes"),
        ([1], -1, 1, "seed: got -1"),
        ([1], 0, 0, "window: got 0"),
    ],
)
def test_settings_out_of_range_are_named(sizes: list[int], seed: int, window: int, message: str):
    with pytest.raises(ValueError, match=message):
        SampleOrder(sizes, seed=seed, window=window)


def test_order_needs_neither_torch_nor_dali():
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['nvidia.dali'] = None\n"
        "from xpt.data.order import SampleOrder\n"
        "from xpt.data.index import open_shards\n"
        "print(SampleOrder([3], seed=0, window=1).total)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "3"
