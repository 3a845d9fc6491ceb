"""Steps whose gradient is not finite, and spikes: noticed, counted, and what a run does about them.

The engine skips such a step on the device, on all ranks alike: the norm is that of the whole gradient. The
host learns of it one step later, from a copy that the device has made meanwhile, and so never waits. After
`train.max_skipped` of them in a row the run takes the weights of its last checkpoint and goes on with the
films that come next: none of those since that checkpoint is seen again.
"""

import logging
import math
import statistics
from collections import deque
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xpt.training.checkpoint import Checkpoints
from xpt.training.interval import Interval, NonFiniteError
from xpt.training.telemetry import RunLog

log = logging.getLogger("xpt")
MAX_ROLLBACKS = 3
"""Of one run; where one more would be needed, it stops."""
NORM_SPIKE, LOSS_SPIKE = 10.0, 1.5
"""A norm (of a step) or a loss (of an interval) this many times the median of those before is a spike."""
NORMS, LOSSES = 64, 16
"""How many before; with fewer than a quarter of that, nothing is a spike."""
COUNTS = ("skipped", "rollbacks", "norm_spikes", "loss_spikes")


class Watch:
    """What all ranks know alike of a run's steps. It travels in checkpoints as `state`."""

    def __init__(self, max_skipped: int, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self._max_skipped = max_skipped
        self.counts: dict[str, int] = {name: state.get(name, 0) for name in COUNTS}
        self.in_a_row: int = state.get("in_a_row", 0)
        """Skipped steps up to the newest that is known."""
        self.is_rollback_due = False
        self._norms: deque[float] = deque(state.get("norms", ()), maxlen=NORMS)
        self._losses: deque[float] = deque(state.get("losses", ()), maxlen=LOSSES)
        self._pending: list[tuple[int, Tensor, torch.cuda.Event | None]] = []

    def state(self) -> dict[str, Any]:
        lists = {"norms": list(self._norms), "losses": list(self._losses)}
        return {**self.counts, **lists, "in_a_row": self.in_a_row}

    def add(self, step: int, norm: Float[Tensor, ""]) -> None:
        """Of the whole gradient of a step, on the device; does not wait for it."""
        if norm.device.type == "cuda":
            # Page-locked, or the copy would wait for the device.
            host = torch.empty((), pin_memory=True).copy_(norm, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._pending.append((step, host, copied))
        else:
            self._pending.append((step, norm.clone(), None))

    def skipped(self, *, settle: bool) -> list[int]:
        """Steps now known to have been skipped. The newest step is looked at only with `settle`, or where a
        rollback has become due: that waits for the device."""
        found: list[int] = []
        while len(self._pending) > (0 if settle or self.is_rollback_due else 1):
            step, host, copied = self._pending.pop(0)
            if copied is not None:
                copied.synchronize()
            norm = host.item()
            if math.isfinite(norm):
                self.in_a_row = 0
                if _is_spike(norm, self._norms, NORM_SPIKE):
                    self.counts["norm_spikes"] += 1
                    log.warning("step %d: gradient norm %.3g, a spike", step, norm)
                self._norms.append(norm)
            else:
                self.in_a_row += 1
                self.counts["skipped"] += 1
                found.append(step)
            self.is_rollback_due |= self.in_a_row >= self._max_skipped
        return found

    def add_loss(self, loss: float) -> None:
        """The mean of an interval; NaN where all its steps were skipped."""
        if math.isnan(loss):
            return
        if _is_spike(loss, self._losses, LOSS_SPIKE):
            self.counts["loss_spikes"] += 1
            log.warning("loss %.4g, a spike", loss)
        self._losses.append(loss)

    def rolled_back(self) -> None:
        self.counts["rollbacks"] += 1
        self.is_rollback_due, self.in_a_row = False, 0


def _is_spike(value: float, before: deque[float], factor: float) -> bool:
    assert before.maxlen is not None
    return len(before) >= before.maxlen // 4 and value > factor * statistics.median(before)


def handle_skipped(
    watch: Watch,
    interval: Interval,
    checkpoints: Checkpoints,
    run_log: RunLog | None,
    *,
    settle: bool,
) -> bool:
    """Note the films of steps that were skipped; go back to the last checkpoint's weights where that is due.

    All ranks must call it after the same step. Returns whether it went back.

    Raises NonFiniteError, on all ranks, where there is no checkpoint to go back to, or where the run has
    gone back too often.
    """
    batch = checkpoints.job.config.train.global_batch
    what, films, step = "", [], 0
    for step in watch.skipped(settle=settle):
        what, films = interval.set_aside(step)
        if run_log is not None:
            run_log.skipped((step + 1) * batch, {"step": step, "not_finite": what, "films": films})
            log.warning("step %d skipped: its %s is not finite; films in skipped.jsonl", step, what)
    if not watch.is_rollback_due:
        return False
    if watch.counts["rollbacks"] == MAX_ROLLBACKS:
        raise NonFiniteError(step, what, films)
    images, _ = checkpoints.resume()
    if images == 0:
        raise NonFiniteError(step, what, films)
    watch.rolled_back()
    log.warning(
        "%d steps in a row skipped: back to the weights after %s images, on with the films after step %d",
        checkpoints.job.config.train.max_skipped,
        f"{images:,}",
        step,
    )
    return True
