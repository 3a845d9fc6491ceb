import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from xpt.training import stragglers
from xpt.training.stragglers import Slowest, Stragglers


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Three ranks as threads; their all-reduce is a sum behind a barrier."""
    barrier, parts = Barrier(3), []

    def all_reduce(values: torch.Tensor) -> torch.Tensor:
        parts.append(values)
        barrier.wait(10)
        return torch.stack(parts).sum(0)

    monkeypatch.setattr(stragglers, "all_reduce", all_reduce)
    yield 3


@pytest.mark.parametrize(
    ("waits", "computes", "slowest"), [((9, 1, 2), (0, 0, 0), 0), ((0.0,) * 3, (0, 0.3, 0), 1)]
)
def test_the_rank_that_keeps_the_others_waiting_is_named(together: int, waits, computes, slowest: int):
    def rank(number: int) -> Slowest:
        ranks = Stragglers(torch.device("cpu"), rank=number, world_size=together)
        with ranks:
            time.sleep(computes[number])
        return ranks.close(wait_seconds=float(waits[number]), retries=number)

    with ThreadPoolExecutor(together) as pool:
        found = list(pool.map(rank, range(together)))
    assert found[0] == found[1] == found[2]
    assert found[0].rank == slowest
    assert found[0].wait_seconds == waits[slowest]
    assert found[0].seconds == pytest.approx(waits[slowest] + computes[slowest], abs=0.2)
    assert found[0].median_seconds == pytest.approx(sorted(waits)[1], abs=0.2)
    assert found[0].retries == 3
    assert f"slowest rank {slowest}: " in found[0].line()
