"""Which rank holds the others up, and whether it is its films or its computing.

All ranks end a step together, so their step times say nothing. What a rank does alone tells them apart:
waiting for its films, and its forward passes (under ZeRO 1 and 2; under ZeRO 3 those gather weights).
"""

import time
from dataclasses import dataclass
from types import TracebackType

import torch

from xpt.training.distributed import all_reduce


@dataclass(frozen=True, kw_only=True)
class Slowest:
    """Of one interval, the same on every rank. Seconds are those of the whole interval."""

    rank: int
    ranks: int
    """How many there are."""
    seconds: float
    """That it waited for films and computed forward passes."""
    wait_seconds: float
    """That it waited for films."""
    median_seconds: float
    """Of all ranks, what `seconds` is of this one."""
    retries: int
    """Reads of films that failed and were tried again since the start, over all ranks."""

    def scalars(self) -> dict[str, float]:
        return {
            "slowest_rank": self.rank,
            "slowest_seconds": self.seconds,
            "slowest_wait_seconds": self.wait_seconds,
            "median_rank_seconds": self.median_seconds,
            "read_retries": self.retries,
        }

    def line(self) -> str:
        """For the log; nothing to say of a single rank."""
        if self.ranks == 1:
            return ""
        return (
            f"  slowest rank {self.rank}: {self.seconds:.1f} s "
            f"({self.wait_seconds:.1f} s waiting for films), "
            f"median {self.median_seconds:.1f} s"
        )


class Stragglers:
    """Times the forward passes of this rank (`with stragglers:`); `close` compares the ranks."""

    def __init__(self, device: torch.device, *, rank: int, world_size: int) -> None:
        self._device = device
        self._rank = rank
        self._world_size = world_size
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._device.type == "cuda":
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()
        else:
            self._seconds -= time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter()

    def close(self, *, wait_seconds: float, retries: int) -> Slowest:
        """What the ranks did alone since the last call, compared; all must call it, the device being done."""
        forward = self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1e3
        self._seconds, self._events = 0.0, []
        ranks_R3 = torch.zeros(self._world_size, 3, dtype=torch.float64, device=self._device)
        ranks_R3[self._rank] = torch.tensor([wait_seconds + forward, wait_seconds, retries])
        seconds_R, wait_R, retries_R = all_reduce(ranks_R3).cpu().unbind(1)
        rank = int(seconds_R.argmax())
        return Slowest(
            rank=rank,
            ranks=self._world_size,
            seconds=float(seconds_R[rank]),
            wait_seconds=float(wait_R[rank]),
            median_seconds=float(seconds_R.median()),
            retries=round(float(retries_R.sum())),
        )
