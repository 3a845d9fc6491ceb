"""How all ranks learn at the same step that one of them was asked to stop, without waiting for the device.

A rank that left the loop alone would leave the others waiting in a collective, and reading a flag from
the device at every step would make the host wait for it. So each step sends a flag round, and what all
ranks look at is the flag of the step before, which the device has finished while this one was queued.
"""

import torch
from torch import Tensor

from xpt.training.distributed import all_reduce


class Hands:
    """A show of hands at every step; all ranks must take part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: tuple[Tensor, torch.cuda.Event | None] | None = None

    def show(self, is_raised: bool) -> bool:
        """Whether any rank's hand was up at the step before; the same on every rank."""
        before = self._before
        raised_1 = all_reduce(torch.full((1,), float(is_raised), device=self._device))
        if self._device.type == "cuda":
            # Page-locked, or the copy would wait for the device.
            host_1 = torch.empty(1, pin_memory=True).copy_(raised_1, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._before = host_1, copied
        else:
            self._before = raised_1, None
        if before is None:
            return False
        flag_1, copied = before
        if copied is not None:
            copied.synchronize()
        return flag_1.item() > 0
