"""A running mean of the weights, in float32, validated and kept in their place."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Ema:
    """Every rank holds the whole mean, so the parameters must be whole (ZeRO 1 or 2)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._means = [p.detach().float().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 1). Early means would be those of random weights: the decay
        rises as (1 + step) / (10 + step)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the means for weights inside the block, and its own after it."""
        own = [p.detach().clone() for p in self._parameters]
        self._set(self._means)
        try:
            yield
        finally:
            self._set(own)

    def state(self) -> list[Tensor]:
        return self._means

    def load(self, state: list[Tensor]) -> None:
        for mean, saved in zip(self._means, state, strict=True):
            mean.copy_(saved)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
