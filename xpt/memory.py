"""How much memory a training step needs, before it is tried.

Per rank, in bytes, with P parameters of which T are trained, n ranks that share, s bytes per value (2 in
bf16, 4 in fp32). ZeRO (Rajbhandari et al., arXiv 1910.02054) divides by n what its stage names:

    weights       s P             divided from stage 3
    gradients     s T             divided from stage 2; in bf16 also their float32 sum, 4 T, divided from
                                  stage 1
    optimizer     12 T            AdamW: float32 master weights and two moments; divided from stage 1;
                                  0 where they are offloaded to the host
    activations   B N s (depth D (8 + 2 r) + D)

A pre-norm block keeps for its backward pass, per token and in units of the width D: its input (1), the first
norm's output (1), queries, keys and values (3), the attention's output (1), the sum after it (1), the second
norm's output (1), and the MLP's hidden layer before and after GELU (2 r), r its ratio: 8 + 2 r. Attention
that forms no score matrix adds N values per head. With activation checkpointing each block keeps its input
alone, and one block at a time is whole. A frozen encoder keeps nothing. What this leaves out (the allocator's
slack, cuDNN's and NCCL's buffers, a step's short-lived copies) is 1 to 3 GB on a GPU.
"""

from dataclasses import dataclass
from typing import Any

from xpt.config import EncoderConfig

BYTES = {"bf16": 2, "fp32": 4}
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes per rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def line(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations")
        said = ", ".join(f"{name} {getattr(self, name) / GB:.2f}" for name in parts)
        return f"memory per rank, estimated: {self.total / GB:.2f} GB ({said})"


def block_values(width: int, heads: int, mlp_ratio: float) -> float:
    """Values that one block keeps per token."""
    return width * (8 + 2 * mlp_ratio) + heads


def encoder_activations(
    model: EncoderConfig, *, tokens: int, images: int, bytes_per_value: int, recomputes: bool
) -> int:
    """Bytes that the blocks of `model` keep for the backward pass of `images` images of `tokens` tokens."""
    whole = block_values(model.width, model.heads, model.mlp_ratio)
    blocks = model.depth * model.width + whole if recomputes else model.depth * whole
    return round(images * tokens * bytes_per_value * (blocks + model.width))


def training_memory(
    model: EncoderConfig,
    *,
    tokens: int,
    parameters: int,
    trained: int,
    micro_batch: int,
    precision: str,
    zero: dict[str, Any],
    ranks: int,
    is_frozen: bool = False,
) -> Memory:
    """Of one rank, for a model that is the encoder and little more.

    Args:
        tokens: of one image, the class token included.
        zero: the `zero_optimization` of DeepSpeed's JSON.
    """
    size, stage = BYTES[precision], zero["stage"]
    firsts = {"state": 1, "gradient": 2, "weight": 3}
    shares = {part: ranks if stage >= first else 1 for part, first in firsts.items()}
    is_offloaded = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    float32_sum = 4 * trained // shares["state"] if precision == "bf16" else 0
    return Memory(
        weights=size * parameters // shares["weight"],
        gradients=size * trained // shares["gradient"] + float32_sum,
        optimizer=0 if is_offloaded else 12 * trained // shares["state"],
        activations=0
        if is_frozen
        else encoder_activations(
            model,
            tokens=tokens,
            images=micro_batch,
            bytes_per_value=size,
            recomputes=model.activation_checkpointing,
        ),
    )
