"""Exact attention through one of two backends.

Shape suffixes: B images, N queries, M some of them, S keys, H heads, E width of a head, D width.

At 6,400 tokens the score matrix of one ViT-L layer is 2.6 GB in fp32, so no backend here forms it:
`sdpa` is PyTorch's scaled_dot_product_attention (FlashAttention or memory-efficient kernels on a GPU,
a blocked kernel on a CPU), `flash_attn` the package of Dao et al. (arXiv 2307.08691).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Backend = Literal["sdpa", "flash_attn"]
AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q_BNHE, k_BSHE, v_BSHE) -> out_BNHE."""


def attention_function(backend: Backend) -> AttentionFunction:
    """The function of a backend.

    Raises:
        ValueError: for `flash_attn` where neither flash-attn 2 nor flash-attn 4 can be imported.
    """
    if backend == "sdpa":
        return _sdpa
    try:
        # flash-attn 4 lives under the same import name, so only importing the function tells.
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

        return flash_attn_func
    except ImportError:
        pass
    try:
        from flash_attn.cute import (  # pyright: ignore[reportMissingImports]
            flash_attn_func as flash_attn_4,
        )
    except ImportError as error:
        raise ValueError(
            "model.attention flash_attn: the package flash-attn cannot be imported "
            f"({error}). Install it with `pip install -e '.[flash]'` (Ampere and later, needs nvcc) or "
            "`pip install -e '.[fa4]'` (Hopper and Blackwell), or set --model.attention sdpa."
        ) from error

    def flash_4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = flash_attn_4(q, k, v)
        return result[0] if isinstance(result, tuple) else result  # some releases add the log-sum-exp

    return flash_4


def _sdpa(q_BNHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q_BNHE, k_BSHE, v_BSHE))
    if q.device.type == "cpu":
        # A row of a head of 32 is 128 bytes, each of them in another page of the joint projection.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attention_kernel(backend: Backend, head_width: int, dtype: torch.dtype, device: torch.device) -> str:
    """Which kernel runs for heads of this width: what PyTorch dispatches a small call to, or the package."""
    if backend == "flash_attn":
        return attention_function(backend).__module__.split(".")[0]
    names: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            names.append(func.__name__.partition(".")[0])
            return func(*args, **(kwargs or {}))

    q, k, v = (torch.zeros(1, 128, 1, head_width, dtype=dtype, device=device) for _ in "qkv")
    with Watch():
        _sdpa(q.requires_grad_(), k, v)
    fused = [name.removeprefix("_scaled_dot_product_") for name in names if "scaled_dot_product" in name]
    return f"sdpa: {fused[0] if fused else 'unfused'}"


def take_tokens(x: Float[Tensor, "B N ..."], ids_BM: Int64[Tensor, "B M"]) -> Float[Tensor, "B M ..."]:
    """Of each image the tokens with these numbers."""
    # Not by gather, which keeps all of x for its backward pass, to know how large it was.
    return x[torch.arange(len(x), device=x.device)[:, None], ids_BM]


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of timm's (`qkv`, `proj`).

    It is given the projection `qkv` of its tokens, because how a block makes that is the block's own choice.
    """

    def __init__(self, width: int, heads: int, backend: Backend) -> None:
        super().__init__()
        assert width % heads == 0
        self.heads = heads
        self.attend = attention_function(backend)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, qkv: Float[Tensor, "B N _"], asking_BM: Int64[Tensor, "B M"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """The output at all tokens, or at the tokens `asking_BM` alone, which attend to all."""
        q_BNHE, k_BNHE, v_BNHE = qkv.unflatten(2, (3, self.heads, -1)).unbind(2)
        if asking_BM is not None:
            q_BNHE = take_tokens(q_BNHE, asking_BM)
        return self.proj(self.attend(q_BNHE, k_BNHE, v_BNHE).flatten(2))


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another; it is given the projected queries."""

    def __init__(self, width: int, memory_width: int, heads: int, backend: Backend) -> None:
        super().__init__()
        assert width % heads == 0
        self.heads = heads
        self.attend = attention_function(backend)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(memory_width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, q: Float[Tensor, "B N D"], memory: Float[Tensor, "B S W"]) -> Float[Tensor, "B N D"]:
        q_BNHE = q.unflatten(2, (self.heads, -1))
        k_BSHE, v_BSHE = self.kv(memory).unflatten(2, (2, self.heads, -1)).unbind(2)
        return self.proj(self.attend(q_BNHE, k_BSHE, v_BSHE).flatten(2))
