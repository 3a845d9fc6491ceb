"""The blocks of encoder and decoders, and what of them is made again in the backward pass.

Shape suffixes: B images, N tokens, M of them (or queries of their own), S tokens attended to, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xpt.config import Recompute
from xpt.models.attention import Backend, CrossAttention, SelfAttention, take_tokens

_again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


class Recomputing(nn.Module):
    """What both kinds of block have: `recompute` says what they do not keep for the backward pass."""

    recompute: Recompute = "none"

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.recompute == "blocks" and self._learns:
            # With its random state: a block may drop paths.
            return checkpoint(self.compute, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return self.compute(*inputs)

    def compute(self, *inputs: Any, **_: Any) -> Tensor:  # noqa: ANN401  each kind's own
        raise NotImplementedError

    def after(self, cheap: Callable[[Tensor], Tensor], linear: nn.Module, x: Tensor) -> Tensor:
        """`linear(cheap(x))`, keeping x alone where elementwise operations are recomputed.

        PyTorch ends the second computation once it has made what the backward pass needs, which is
        `cheap(x)`: the matrix product is not repeated.
        """

        def run(x: Tensor) -> Tensor:
            return linear(cheap(x))

        if self.recompute == "elementwise" and self._learns:
            return _again(run, x)  # pyright: ignore[reportReturnType]
        return run(x)

    @property
    def _learns(self) -> bool:
        return self.training and torch.is_grad_enabled()


class SelfBlock(Recomputing):
    """timm's pre-norm block, with its parameter names, whose output may be asked for at some tokens only."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: float, attention: Backend, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads, attention)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def compute(
        self, x_BND: Float[Tensor, "B N D"], asking_BM: Int64[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """The output at all tokens, or at the tokens `asking_BM` alone, which attend to all."""
        qkv = self.after(self.norm1, self.attn.qkv, x_BND)
        if asking_BM is not None:
            x_BND = take_tokens(x_BND, asking_BM)
        x = x_BND + self.drop_path(self.attn(qkv, asking_BM))
        hidden = self.after(self.norm2, self.mlp.fc1, x)
        return x + self.drop_path(self.after(self.mlp.act, self.mlp.fc2, hidden))


class CrossBlock(Recomputing):
    """Pre-norm cross-attention, then an MLP; the queries never see each other (CrossMAE, section 3.2)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, attention: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, width, heads, attention)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def compute(
        self, x_BMD: Float[Tensor, "B M D"], memory_BSD: Float[Tensor, "B S D"]
    ) -> Float[Tensor, "B M D"]:
        into, activation, out_of = self.mlp
        x = x_BMD + self.attn(self.after(self.norm1, self.attn.q, x_BMD), memory_BSD)
        return x + self.after(activation, out_of, self.after(self.norm2, into, x))
