# Triton gives the arguments of its functions their types, and compiles another language than Python.
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
"""The patch loss in one Triton kernel: it reads predictions and uint8 pixels once, and writes the gradient.

A program takes a few patches. Its sums stay in registers; only one number per program is left for a small
sum over programs, in a fixed order, so that the loss is the same bits every time. Atomic adds would not be.

Whether the gradient must be scaled is known on the device only, when backward starts. The scaling kernel
looks there, and returns at once where the factor is 1, so that the host does not wait.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.patch_loss.reference import VARIANCE_EPSILON, LossAndGradient, gradient_dtype
from kernels.patches import grid_of, normalization

SCALE_BLOCK = 4096
_VARIANCE_EPSILON = tl.constexpr(VARIANCE_EPSILON)


@triton.jit(do_not_specialize=["rows", "M", "grid_w"])
def patch_loss_kernel(
    pred,
    image,
    ids,
    weight,
    mse,
    partial,
    gradient,
    rows,
    M,
    scale,
    bias,
    height,
    width,
    grid_w,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Grid (programs,): program i takes rows i * BLOCK_N and on of the B * M patches."""
    P: tl.constexpr = CHANNELS * PATCH * PATCH
    program = tl.program_id(0)
    row_N = program.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row_N = row_N < rows
    # Division of 64-bit integers is slow.
    id_N = tl.load(ids + row_N, mask=is_row_N, other=0).to(tl.int32)
    weight_N = tl.load(weight + row_N, mask=is_row_N, other=0.0)
    plane = height.to(tl.int64) * width
    top_N = row_N // M * CHANNELS * height + (id_N // grid_w) * PATCH
    corner_N = top_N * width + (id_N % grid_w) * PATCH

    if NORMALIZE:
        total_N = tl.zeros((BLOCK_N,), tl.int64)
        squares_N = tl.zeros((BLOCK_N,), tl.int64)
        for start_p in tl.static_range(0, P, BLOCK_P):
            inner_P, is_read = _pixels(is_row_N, start_p, plane, width, PATCH, P, BLOCK_P)
            pixel = tl.load(image + corner_N[:, None] + inner_P[None, :], mask=is_read, other=0).to(tl.int32)
            total_N += tl.sum(pixel, 1)
            squares_N += tl.sum(pixel * pixel, 1)
        variance_N = (P * squares_N - total_N * total_N).to(tl.float32) / (P * (P - 1.0))
        scale_N = scale / P / tl.sqrt(variance_N * scale * scale + _VARIANCE_EPSILON)

    error_N = tl.zeros((BLOCK_N,), tl.float32)
    for start_p in tl.static_range(0, P, BLOCK_P):
        inner_P, is_read = _pixels(is_row_N, start_p, plane, width, PATCH, P, BLOCK_P)
        pixel = tl.load(image + corner_N[:, None] + inner_P[None, :], mask=is_read, other=0)
        offset = row_N[:, None] * P + (start_p + tl.arange(0, BLOCK_P))[None, :]
        value = tl.load(pred + offset, mask=is_read, other=0.0).to(tl.float32)
        if NORMALIZE:
            target = (pixel.to(tl.int32) * P - total_N.to(tl.int32)[:, None]).to(tl.float32) * scale_N[
                :, None
            ]
        else:
            target = pixel.to(tl.float32) * scale + bias
        difference = tl.where(is_read, value - target, 0.0)
        error_N += tl.sum(difference * difference, 1)
        if WITH_GRADIENT:
            counted = tl.where(weight_N[:, None] != 0, difference, 0.0)
            slope = counted * (weight_N * (2.0 / P))[:, None]
            tl.store(gradient + offset, slope.to(gradient.dtype.element_ty), mask=is_read)

    mse_N = error_N / P
    tl.store(mse + row_N, mse_N, mask=is_row_N)
    tl.store(partial + program, tl.sum(weight_N * tl.where(weight_N != 0, mse_N, 0.0), 0))


@triton.jit
def _pixels(is_row_N, start_p, plane, width, PATCH: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets of the values start_p and on from a patch's corner, and which (row, value) there are."""
    p = start_p + tl.arange(0, BLOCK_P)
    inner_P = p // (PATCH * PATCH) * plane + (p // PATCH % PATCH) * width + p % PATCH
    is_read = is_row_N[:, None]
    if P % BLOCK_P != 0:
        is_read = is_read & (p < P)[None, :]
    return inner_P, is_read


@triton.jit
def scale_kernel(gradient, factor, size, BLOCK: tl.constexpr):
    """Multiplies by the scalar at `factor`, without touching the gradient where that is 1."""
    value = tl.load(factor)
    if value != 1.0:
        index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        product = tl.load(gradient + index, mask=index < size, other=0.0).to(tl.float32) * value
        tl.store(gradient + index, product.to(gradient.dtype.element_ty), mask=index < size)


def loss_and_gradient(
    pred_BMP: Tensor,
    image_BCHW: Tensor,
    ids_BM: Tensor,
    weight_BM: Tensor,
    *,
    patch: int,
    mean: float,
    std: float,
    normalize: bool,
    with_gradient: bool,
) -> LossAndGradient:
    """As `kernels.patch_loss.reference.loss_and_gradient`."""
    device = pred_BMP.device
    rows, values = ids_BM.numel(), pred_BMP.shape[2]
    mse_BM = torch.empty(ids_BM.shape, dtype=torch.float32, device=device)
    gradient_BMP = None
    if with_gradient:
        gradient_BMP = torch.empty(pred_BMP.shape, dtype=gradient_dtype(pred_BMP.dtype), device=device)
    programs = triton.cdiv(rows, block_sizes(values)[0])
    partial = torch.empty(programs, dtype=torch.float32, device=device)
    arguments, constants = launch_arguments(
        pred_BMP,
        image_BCHW,
        ids_BM,
        weight_BM,
        LossAndGradient(partial, mse_BM, gradient_BMP),
        patch=patch,
        mean=mean,
        std=std,
        normalize=normalize,
    )
    if programs:  # a grid must not be empty
        with torch.cuda.device_of(pred_BMP):
            patch_loss_kernel[(programs,)](*arguments, **constants)
    return LossAndGradient(partial.sum(), mse_BM, gradient_BMP)


def scale_gradient(gradient_BMP: Tensor, factor: Tensor) -> None:
    """As `kernels.patch_loss.reference.scale_gradient`."""
    size = gradient_BMP.numel()
    if size:
        with torch.cuda.device_of(gradient_BMP):
            scale_kernel[(triton.cdiv(size, SCALE_BLOCK),)](gradient_BMP, factor, size, BLOCK=SCALE_BLOCK)


def block_sizes(values: int) -> tuple[int, int]:
    """(patches, values) of a patch that a program holds at once: 16 numbers for each of 128 threads."""
    block_p = 256 if values % 256 == 0 else min(triton.next_power_of_2(values), 1024)
    return max(1, 2048 // block_p), block_p


def launch_arguments(
    pred_BMP: Tensor,
    image_BCHW: Tensor,
    ids_BM: Tensor,
    weight_BM: Tensor,
    out: LossAndGradient,
    *,
    patch: int,
    mean: float,
    std: float,
    normalize: bool,
) -> tuple[tuple[Tensor | int | float | None, ...], dict[str, int | bool]]:
    """The kernel's arguments, and its constants with the launch options.

    `out.loss` takes the parts of the programs.
    """
    channels, height, width = image_BCHW.shape[1:]
    _, grid_w = grid_of(image_BCHW, patch)
    block_n, block_p = block_sizes(pred_BMP.shape[2])
    arguments = (
        pred_BMP.contiguous(),
        image_BCHW.contiguous(),
        ids_BM.contiguous(),
        weight_BM.contiguous(),
        out.mse_BM,
        out.loss,
        out.gradient_BMP,
        ids_BM.numel(),
        ids_BM.shape[1],
        *normalization(mean, std),
        height,
        width,
        grid_w,
    )
    constants = {
        "CHANNELS": channels,
        "PATCH": patch,
        "NORMALIZE": normalize,
        "WITH_GRADIENT": out.gradient_BMP is not None,
        "BLOCK_N": block_n,
        "BLOCK_P": block_p,
        "num_warps": 4,
    }
    return arguments, constants
