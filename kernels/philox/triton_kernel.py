# Triton gives the arguments of its functions their types, and compiles another language than Python.
# ruff: noqa: ANN001, ANN201
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
"""Philox4x32-10 inside Triton kernels: the bits of `kernels.philox.reference`."""

import triton
import triton.language as tl


@triton.jit
def philox_words(seed_low, seed_high, block, position, stream):
    """Four uint32 words for each `block` (uint32) of one image and stream.

    seed_low and seed_high are int32 with the bits of the seed, `position` is int64.
    """
    zero = block & 0
    return tl.philox_impl(
        block,
        zero + (position & 0xFFFFFFFF).to(tl.uint32),
        zero + (position >> 32).to(tl.uint32),
        zero + stream,
        seed_low.to(tl.uint32),
        seed_high.to(tl.uint32),
    )


@triton.jit
def philox_draws(seed_low, seed_high, position, stream, COUNT: tl.constexpr):
    """COUNT (a power of two, at least 4) uint32 draws: element i is word i mod 4 of block i div 4."""
    block = tl.arange(0, COUNT // 4).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(seed_low, seed_high, block, position, stream)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


def seed_words(seed: int) -> tuple[int, int]:
    """The halves of a seed as signed 32-bit integers, the one type that Triton gives to every small int."""
    low, high = seed & 0xFFFFFFFF, seed >> 32
    return low - (low >> 31 << 32), high - (high >> 31 << 32)
