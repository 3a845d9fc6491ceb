"""What happened since the last line of metrics, and how all ranks come to one view of it.

Within an interval everything stays on the device. At its end one all-reduce and one read bring the
mean loss, and let the ranks agree on what to do next: a rank that left the loop alone would leave
the others waiting in a collective.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from xpt.training.distributed import all_reduce, gather_objects


class NonFiniteError(RuntimeError):
    """The loss or the gradient stopped being a number; the message names step and sample keys."""

    def __init__(self, step: int, what: str, keys: list[str]) -> None:
        self.step, self.keys = step, keys
        super().__init__(
            f"the {what} is not finite at step {step}, in films {', '.join(keys)}. Nothing was saved "
            "since the last checkpoint. Look at those films with `xpt-shards preview`; if they are sound, "
            "lower --train.base_lr or set --train.clip_norm. The same command goes on from the last "
            "checkpoint."
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """One interval, the same on every rank."""

    loss: float
    """Mean over all images of the interval on all ranks; NaN where all its steps were skipped."""
    grad_norm: float
    """Of the last step that was not skipped, before clipping."""
    wait_seconds: float
    """That ranks waited for data, mean over ranks."""
    replaced: int
    """Damaged films replaced since this process started, over all ranks."""
    checkpoint_due: bool


class Interval:
    """Losses and gradient norms of the steps since the last report. Adding does not wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[tuple[int, list[str], Tensor]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def add_losses(self, step: int, keys: list[str], loss_B: Float[Tensor, "B"]) -> None:
        """Of one micro-batch."""
        self._parts.append((step, keys, loss_B))

    def add_norm(self, step: int, norm: Float[Tensor, ""]) -> None:
        """Of the whole gradient of one step."""
        self._norms.append((step, norm))

    def close(
        self,
        *,
        wait_seconds: float,
        replaced: int,
        checkpoint_due: bool,
        world_size: int,
    ) -> Report:
        """Agree on the interval and start the next one; all ranks must call it after the same step.

        Raises NonFiniteError, on all ranks with the same content, where a loss or a norm is not finite.
        """
        if self._parts:
            losses_NB = torch.stack([loss_B for _, _, loss_B in self._parts])
            norms_S = torch.stack([norm for _, norm in self._norms])
            is_bad = ~(torch.isfinite(losses_NB).all() & torch.isfinite(norms_S).all())
            own = torch.stack([losses_NB.double().mean(), is_bad.double(), norms_S[-1].double()])
        else:
            own = torch.tensor([math.nan, 0, math.nan], dtype=torch.float64, device=self._device)
        host = torch.tensor(
            [wait_seconds, replaced, checkpoint_due], dtype=torch.float64, device=self._device
        )
        totals = torch.cat([own, host])
        loss, bad, norm, wait, replaced_all, due = (all_reduce(totals) / world_size).tolist()
        if bad > 0:
            raise self._non_finite()
        self._parts.clear()
        self._norms.clear()
        return Report(
            loss=loss,
            grad_norm=norm,
            wait_seconds=wait,
            replaced=round(replaced_all * world_size),
            checkpoint_due=due > 0,
        )

    def set_aside(self, step: int) -> tuple[str, list[str]]:
        """Take out a step that was skipped; all ranks must call it.

        Returns:
            ("loss", the films whose loss is not finite) or, where there is none, ("gradient", all films of
            the step), over all ranks.
        """
        mine = [(keys, loss_B.tolist()) for s, keys, loss_B in self._parts if s == step]
        films = [pair for keys, losses in mine for pair in zip(keys, losses, strict=True)]
        self._parts = [part for part in self._parts if part[0] != step]
        self._norms = [part for part in self._norms if part[0] != step]
        everyones = [pair for part in gather_objects(films) for pair in part]
        to_blame = sorted({key for key, loss in everyones if not math.isfinite(loss)})
        if to_blame:
            return "loss", to_blame
        return "gradient", sorted({key for key, _ in everyones})

    def _non_finite(self) -> NonFiniteError:
        """The first step that went wrong: what follows is its damage, and later films are not to blame."""
        steps = [step for step, _, loss_B in self._parts if not torch.isfinite(loss_B).all()]
        steps += [step for step, norm in self._norms if not math.isfinite(norm.item())]
        first = min(step for part in gather_objects(steps) for step in part)
        return NonFiniteError(first, *self.set_aside(first))
