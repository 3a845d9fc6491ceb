"""Every kernel compiles for the GPUs it is meant for, without one, and keeps its numbers in registers."""

import os

import pytest
import torch

from kernels.mask_gather.reference import MaskedPatches
from kernels.patch_loss.reference import LossAndGradient

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: this process interprets kernels", allow_module_level=True)

from kernels.ahead_of_time import CompiledKernel, compile_kernel
from kernels.mask_gather import triton_kernel as mask_gather
from kernels.patch_loss import triton_kernel as patch_loss

IMAGES, LENGTH = 2, 6400
CAPABILITIES = [80, 90, 100]
DTYPES = [torch.bfloat16, torch.float32]


def image() -> torch.Tensor:
    return torch.empty(IMAGES, 1, 1280, 1280, dtype=torch.uint8)


def compiled_mask_gather(capability, dtype, *, keep, weighted) -> CompiledKernel:
    predict = (LENGTH - keep) // 4
    out = MaskedPatches(
        torch.empty(IMAGES, keep, 256, dtype=dtype),
        torch.empty(IMAGES, keep, dtype=torch.int64),
        torch.empty(IMAGES, predict, dtype=torch.int64),
        torch.empty(IMAGES, predict, dtype=torch.bool),
        torch.empty(IMAGES, LENGTH, dtype=torch.bool),
    )
    arguments, constants = mask_gather.launch_arguments(
        image(),
        torch.empty(IMAGES, LENGTH),
        torch.empty(IMAGES, LENGTH, dtype=torch.bool),
        torch.empty(IMAGES, dtype=torch.int64),
        out,
        seed=5,
        patch=16,
        rate_inside=3277,
        rate_outside=9830,
        weighted=weighted,
        mean=0.5,
        std=0.25,
    )
    return compile_kernel(mask_gather.mask_gather_kernel, arguments, constants, capability)


def compiled_patch_loss(capability, dtype, *, normalize, with_gradient) -> CompiledKernel:
    predict = 1440
    out = LossAndGradient(
        torch.empty(IMAGES * predict // 8),
        torch.empty(IMAGES, predict),
        torch.empty(IMAGES, predict, 256, dtype=dtype) if with_gradient else None,
    )
    arguments, constants = patch_loss.launch_arguments(
        torch.empty(IMAGES, predict, 256, dtype=dtype),
        image(),
        torch.empty(IMAGES, predict, dtype=torch.int64),
        torch.empty(IMAGES, predict),
        out,
        patch=16,
        mean=0.5,
        std=0.25,
        normalize=normalize,
    )
    return compile_kernel(patch_loss.patch_loss_kernel, arguments, constants, capability)


def assert_lean(kernel, capability):
    assert kernel.cubin.startswith(b"\x7fELF")
    assert f".target sm_{capability}" in kernel.ptx
    assert kernel.stack_bytes == kernel.local_bytes == 0
    assert "ld.global.v4.b32" in kernel.ptx and "st.global.v4.b32" in kernel.ptx


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_mask_gather_spills_nothing_at_1280_pixels(capability, weighted, dtype):
    for keep in (640, 1600):
        assert_lean(compiled_mask_gather(capability, dtype, keep=keep, weighted=weighted), capability)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_patch_loss_spills_nothing(capability, normalize, dtype):
    kernel = compiled_patch_loss(capability, dtype, normalize=normalize, with_gradient=True)
    assert_lean(kernel, capability)


def test_without_autograd_the_patch_loss_stores_no_vectors():
    kernel = compiled_patch_loss(90, torch.float32, normalize=False, with_gradient=False)
    assert "st.global.v4" not in kernel.ptx


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_scaling_the_gradient_spills_nothing(capability, dtype):
    gradient = torch.empty(IMAGES, 1440, 256, dtype=dtype)
    kernel = compile_kernel(
        patch_loss.scale_kernel,
        (gradient, torch.empty(()), gradient.numel()),
        {"BLOCK": patch_loss.SCALE_BLOCK},
        capability,
    )
    assert_lean(kernel, capability)
