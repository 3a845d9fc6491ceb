# Triton converts the arguments of its kernels.
# pyright: reportArgumentType=false
"""Philox in Triton gives the bits of the reference."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.philox import draws
from kernels.philox.triton_kernel import philox_draws, seed_words


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def store_draws(position, out, seed_low, seed_high, STREAM: tl.constexpr, COUNT: tl.constexpr):
    row = tl.program_id(0)
    word = philox_draws(seed_low, seed_high, tl.load(position + row), STREAM, COUNT)
    tl.store(out + row * COUNT + tl.arange(0, COUNT), word.to(tl.int64))


@pytest.mark.parametrize("stream", [0, 2])
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32 + 16, 2**63, 2**64 - 1])
def test_draws_are_those_of_the_reference(device, seed, stream):
    position = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**40 + 7, 2**63 - 1], device=device)
    out = torch.full((len(position), 64), -1, device=device)
    store_draws[(len(position),)](position, out, *seed_words(seed), STREAM=stream, COUNT=64)
    assert torch.equal(out, draws(seed, position, stream, 64))
