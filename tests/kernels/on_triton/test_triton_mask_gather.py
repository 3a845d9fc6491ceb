# Triton converts the arguments of its kernels.
# pyright: reportArgumentType=false, reportCallIssue=false
"""The Triton kernel selects what the reference selects, bit for bit, and gathers the same values."""

import pytest
import torch
import triton
import triton.language as tl

from kernels import mask_and_gather
from kernels.mask_gather import reference
from kernels.mask_gather.masked_patches import MaskedPatches
from kernels.mask_gather.triton_kernel import are_within, find_smallest, launch_arguments, mask_gather_kernel

# Images, channels, height, width, patch, kept, predicted, share of padding.
CASES = [
    (2, 1, 64, 96, 16, 7, 10, 0.1),
    (2, 3, 28, 42, 14, 2, 4, 0.1),
    (3, 1, 8, 8, 8, 1, 0, 0.0),
    (3, 2, 9, 15, 3, 15, 0, 0.3),
    (3, 1, 40, 24, 8, 14, 1, 0.7),
    (3, 1, 40, 24, 8, 1, 14, 0.7),
    (2, 1, 40, 24, 8, 5, 10, 1.0),
    (1, 3, 128, 64, 64, 1, 1, 0.0),
    (2, 1, 320, 320, 16, 100, 75, 0.2),
    (1, 1, 1280, 1280, 16, 640, 1440, 0.2),
    (1, 1, 1280, 1280, 16, 1600, 4800, 0.0),
]


def batch(sizes, padding, device):
    images, channels, height, width, patch = sizes
    generator = torch.Generator().manual_seed(images + height + width)
    length = height // patch * (width // patch)
    inputs = (
        torch.randint(0, 256, (images, channels, height, width), dtype=torch.uint8, generator=generator),
        torch.rand(images, length, generator=generator).mul(1.4).sub(0.2).clamp(0, 1),
        torch.rand(images, length, generator=generator) >= padding,
        torch.randint(0, 2**62, (images,), generator=generator),
    )
    return tuple(tensor.to(device) for tensor in inputs)


def assert_same(result, expected, units):
    for name, value, wanted in zip(MaskedPatches._fields, result, expected, strict=True):
        assert value.dtype == wanted.dtype, name
        if value.dtype == torch.bfloat16 and units:
            torch.testing.assert_close(value, wanted, rtol=units * 2**-7, atol=0)
        else:
            assert torch.equal(value, wanted), name


@pytest.mark.parametrize("draw", ["stratified", "weighted"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(device, units, case, draw):
    *sizes, keep, predict, padding = case
    inputs = batch(sizes, padding, device)
    for dtype in (torch.float32, torch.bfloat16):
        result, expected = (
            mask_and_gather(
                *inputs,
                seed=2**63 + 12345,
                keep=keep,
                predict=predict,
                patch=sizes[-1],
                keep_inside=0.05,
                keep_outside=0.15,
                draw=draw,
                mean=0.5,
                std=0.25,
                dtype=dtype,
                backend=backend,
            )
            for backend in ("triton", "torch")
        )
        assert_same(result, expected, units)


@pytest.mark.parametrize("rates", [(1, 65536), (65536, 1), (9830, 9830)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shares", [1, 2, 7])
def test_every_output_is_written_whatever_the_number_of_programs(device, shares, weighted, rates):
    keep, predict, patch = 5, 20, 8
    inputs = batch((2, 1, 40, 72, patch), 0.3, device)
    settings = {
        "seed": 5,
        "patch": patch,
        "rate_inside": rates[0],
        "rate_outside": rates[1],
        "weighted": weighted,
        "mean": 0.4,
        "std": 0.3,
    }
    out = MaskedPatches(
        torch.full((2, keep, 64), float("nan"), device=device),
        torch.full((2, keep), -99, device=device),
        torch.full((2, predict), -99, device=device),
        torch.full((2, predict), 7, dtype=torch.uint8, device=device).view(torch.bool),
        torch.full((2, 45), 7, dtype=torch.uint8, device=device).view(torch.bool),
    )
    arguments, constants = launch_arguments(*inputs, out, **settings)
    mask_gather_kernel[2, 1 + shares](*arguments, **constants)
    expected = reference.mask_and_gather(*inputs, keep=keep, predict=predict, dtype=torch.float32, **settings)
    assert set(out.is_scored_BM.view(torch.uint8).unique().tolist()) <= {0, 1}
    assert set(out.is_masked_BL.view(torch.uint8).unique().tolist()) <= {0, 1}
    assert_same(out, expected, 0)


@pytest.mark.parametrize("draw", ["stratified", "weighted"])
def test_inputs_need_not_be_contiguous(device, draw):
    image, contour, is_valid, position = batch((2, 1, 40, 40, 8), 0.3, device)
    strided = (
        image.transpose(2, 3),
        contour[:1].expand(2, -1),
        is_valid.T.contiguous().T,
        torch.stack([position, position], 1)[:, 0],
    )
    result, expected = (
        mask_and_gather(
            *inputs,
            seed=1,
            keep=6,
            predict=7,
            patch=8,
            keep_inside=0.05,
            keep_outside=0.15,
            draw=draw,
            mean=0.5,
            std=0.25,
            backend=backend,
        )
        for backend, inputs in (("triton", strided), ("torch", [t.contiguous() for t in strided]))
    )
    assert_same(result, expected, 0)


@triton.jit(do_not_specialize=["count"])
def store_smallest(key, out, count, LENGTH: tl.constexpr):
    index = tl.arange(0, LENGTH)
    value = tl.load(key + index).to(tl.uint32)
    bound, first = find_smallest(value, index, count, LENGTH)
    tl.store(out + index, are_within(value, index, bound, first))


@pytest.mark.parametrize(
    "keys",
    [
        [7] * 16,
        [0] * 16,
        [2**32 - 1] * 16,
        [0, 2**32 - 1] * 8,
        [3, 1, 2, 1, 1, 5, 3, 3, 0, 9, 9, 2, 1, 0, 3, 4],
        list(range(2**31 - 8, 2**31 + 8)),
        [2**31, 2**31 - 1, 2**32 - 1, 0] * 4,
    ],
)
def test_ties_go_to_the_earlier_patch(device, keys):
    """Philox almost never ties, so that only made-up keys show what is done about it."""
    key = torch.tensor(keys, device=device)
    for count in (0, 1, 2, 5, 8, 15, 16):
        out = torch.full((16,), 7, dtype=torch.uint8, device=device).view(torch.bool)
        store_smallest[(1,)](key, out, count, LENGTH=16)
        (expected,) = reference.are_smallest(key[None], torch.tensor([[count]], device=device))
        assert int(expected.sum()) == count
        assert torch.equal(out, expected[0]), count
