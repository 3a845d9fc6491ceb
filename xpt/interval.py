"""What happened since the last line of metrics, and how all ranks come to one view of it.

Within an interval everything stays on the device. At its end one all-reduce and one read bring the
mean loss, and let the ranks agree on what to do next: a rank that left the loop alone would leave
the others waiting in a collective.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xpt.distributed import all_reduce, gather_objects


class NonFiniteError(RuntimeError):
    """The loss or the gradient stopped being a number; the message names steps and sample keys."""

    def __init__(self, steps: list[int], keys: list[str]) -> None:
        self.steps, self.keys = steps, keys
        films = f"in films {', '.join(keys)}" if keys else "in the gradient, with every film's loss finite"
        super().__init__(
            f"non-finite values at step {', '.join(map(str, steps))}, {films}. Nothing was saved after the "
            "last checkpoint. Look at those films with `xpt-shards preview`; if they are sound, lower "
            "--train.base_lr or set --train.clip_norm, and start again from the last checkpoint."
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """One interval, the same on every rank."""

    loss: float
    """Mean over all images of the interval on all ranks."""
    grad_norm: float
    """Of the last step, before clipping."""
    wait_seconds: float
    """That ranks waited for data, mean over ranks."""
    replaced: int
    """Damaged films replaced since this process started, over all ranks."""
    asked_to_stop: bool
    checkpoint_due: bool


class Interval:
    """Losses of the steps since the last report."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, list[str], Tensor]] = []

    def add(self, step: int, keys: list[str], loss_B: Float[Tensor, "B"]) -> None:
        """One micro-batch; does not wait for the device."""
        self._parts.append((step, keys, loss_B))

    def close(
        self,
        *,
        grad_norm: Tensor,
        wait_seconds: float,
        replaced: int,
        asked_to_stop: bool,
        checkpoint_due: bool,
        world_size: int,
    ) -> Report:
        """Agree on the interval and start the next one; all ranks must call it after the same step.

        Raises NonFiniteError, on all ranks with the same content, where a loss or the norm is not finite.
        """
        losses_NB = torch.stack([loss_B for _, _, loss_B in self._parts])
        is_bad_NB = ~torch.isfinite(losses_NB)
        is_bad = is_bad_NB.any() | ~torch.isfinite(grad_norm)
        device = losses_NB.device
        host = torch.tensor(
            [wait_seconds, replaced, asked_to_stop, checkpoint_due], dtype=torch.float64, device=device
        )
        totals = torch.cat(
            [torch.stack([losses_NB.double().mean(), is_bad.double(), grad_norm.double()]), host]
        )
        loss, bad, norm, wait, replaced_all, stop, due = (all_reduce(totals) / world_size).tolist()
        if bad > 0:
            raise self._non_finite(is_bad_NB.tolist())
        self._parts.clear()
        return Report(
            loss=loss,
            grad_norm=norm,
            wait_seconds=wait,
            replaced=round(replaced_all * world_size),
            asked_to_stop=stop > 0,
            checkpoint_due=due > 0,
        )

    def _non_finite(self, is_bad: list[list[bool]]) -> NonFiniteError:
        mine = [
            (step, key)
            for (step, keys, _), flags in zip(self._parts, is_bad, strict=True)
            for key, flag in zip(keys, flags, strict=True)
            if flag
        ]
        everyones = sorted({pair for part in gather_objects(mine) for pair in part})
        if not everyones:  # only the gradient: the last step is all that is known
            return NonFiniteError([self._parts[-1][0]], [])
        # Later steps are the damage of the first: their films are not to blame.
        first = everyones[0][0]
        return NonFiniteError([first], [key for step, key in everyones if step == first])
