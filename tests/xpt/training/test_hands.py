import threading

import pytest
import torch

from xpt.training import hands
from xpt.training.hands import Hands


class Rendezvous:
    """Stands for the all-reduce of `count` ranks that are threads: their sum, once all have come."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)
        self._values: dict[int, torch.Tensor] = {}

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        self._values[threading.get_ident()] = values.clone()
        self._barrier.wait(10)
        values.copy_(torch.stack(list(self._values.values())).sum(0))
        self._barrier.wait(10)
        return values


def test_all_ranks_see_one_raised_hand_at_the_next_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hands, "all_reduce", Rendezvous(3))
    seen: dict[int, list[bool]] = {}

    def rank(index: int) -> None:
        ours = Hands(torch.device("cpu"))
        seen[index] = [ours.show(step == 2 and index == 1) for step in range(5)]

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == {index: [False, False, False, True, False] for index in range(3)}


@pytest.mark.gpu
def test_a_show_of_hands_does_not_wait_for_the_step_that_is_queued(monkeypatch: pytest.MonkeyPatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(hands, "all_reduce", lambda values: values)
    ours = Hands(torch.device("cuda"))
    ours.show(False)  # allocates its page-locked memory
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second of device time
    queued = torch.cuda.Event()
    queued.record()
    ours.show(True)
    assert not queued.query()
