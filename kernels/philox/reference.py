"""Philox4x32-10 in plain PyTorch. int64 tensors hold the unsigned 32-bit words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.philox import cpu

if TYPE_CHECKING:
    from jaxtyping import Int64

ROUNDS = 10
WORD = 0xFFFFFFFF
_MULTIPLIER_A, _MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
_WEYL_A, _WEYL_B = 0x9E3779B9, 0xBB67AE85

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(seed: int, block: Tensor, position_low: Tensor, position_high: Tensor, stream: Tensor) -> Words:
    """Four words in [0, 2^32) for each counter.

    Args:
        seed: the key, 0 <= seed < 2^64.
        block, position_low, position_high, stream: the four words of the counters, int64 tensors in
            [0, 2^32) that broadcast to one shape.

    Raises:
        ValueError: for a seed out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, wanted 0 <= seed < 2**64")
    c0, c1, c2, c3 = block, position_low, position_high, stream
    k0, k1 = seed & WORD, seed >> 32
    for _ in range(ROUNDS):
        # The products wrap modulo 2^64, and the mask undoes the sign extension of the shift, so both
        # halves are those of the unsigned product.
        product_a, product_b = c0 * _MULTIPLIER_A, c2 * _MULTIPLIER_B
        c0 = (product_b >> 32).bitwise_and_(WORD) ^ c1 ^ k0
        c2 = (product_a >> 32).bitwise_and_(WORD) ^ c3 ^ k1
        c1, c3 = product_b & WORD, product_a & WORD
        k0, k1 = (k0 + _WEYL_A) & WORD, (k1 + _WEYL_B) & WORD
    return c0, c1, c2, c3


def draws(seed: int, position_B: Int64[Tensor, " B"], stream: int, count: int) -> Int64[Tensor, "B count"]:
    """`count` uniform draws in [0, 2^32) for each position (each 0 <= position < 2^63).

    Raises:
        ValueError: for a seed out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, wanted 0 <= seed < 2**64")
    if position_B.device.type == "cpu":
        return torch.from_numpy(cpu.draws(seed, position_B.numpy(), stream, count))
    return draws_in_torch(seed, position_B, stream, count)


def draws_in_torch(
    seed: int, position_B: Int64[Tensor, " B"], stream: int, count: int
) -> Int64[Tensor, "B count"]:
    """As `draws`, on any device."""
    block_1Q = torch.arange(-(-count // 4), device=position_B.device)[None]
    position_B1 = position_B[:, None]
    stream_11 = torch.full_like(block_1Q[:, :1], stream)
    words = philox(seed, block_1Q, position_B1 & WORD, position_B1 >> 32, stream_11)
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :count]
