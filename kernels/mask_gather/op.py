"""The public function of masking and gathering: checks, then one of two implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from kernels.backend import Backend, use_triton
from kernels.checks import check_tensor
from kernels.mask_gather import reference
from kernels.mask_gather.masked_patches import MaskedPatches
from kernels.mask_gather.reference import RATE_ONE
from kernels.patches import grid_of, normalization

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int64, UInt8

Draw = Literal["stratified", "weighted"]


def mask_and_gather(
    image_BCHW: UInt8[Tensor, "B C H W"],
    contour_BL: Float32[Tensor, "B L"],
    is_valid_BL: Bool[Tensor, "B L"],
    position_B: Int64[Tensor, " B"],
    *,
    seed: int,
    keep: int,
    predict: int,
    patch: int,
    keep_inside: float,
    keep_outside: float,
    draw: Draw = "stratified",
    mean: float,
    std: float,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> MaskedPatches:
    """Mask the patches of each image, and cut out and normalise those that stay visible.

    Which patches, is a function of (seed, position), the contour and the settings only: the same in any
    batch, on any rank and with either backend, bit for bit. A contour of zeros gives random masking at
    one rate, `rect_contour` the fixed rectangle of arXiv 2404.17926's released code.

    Padding (`is_valid_BL` False) is never kept unless an image has fewer than `keep` valid patches, and
    predicted but not scored where it has fewer than `predict` masked valid ones; in both cases the
    slots that are left go to the padding with the lowest draws.

    Args:
        image_BCHW: grey or colour values, 0 to 255; sides are multiples of `patch`.
        contour_BL: covered fraction of each patch, in [0, 1]. Checked for CPU tensors only: for CUDA
            tensors the check would make the host wait.
        is_valid_BL: False for letterbox padding.
        position_B: each image's place in the order of all images, 0 <= position < 2^63.
        seed: 0 <= seed < 2^64.
        keep: number of visible patches of each image, K, 1 to L.
        predict: number of masked patches to predict of each image, M, 0 to L - K; drawn uniformly.
        patch: side of a patch, pixels.
        keep_inside, keep_outside: keep rates in (0, 1], used to 16 bits. Only their ratio counts, as K is
            given.
        draw: `stratified`: exact numbers inside (contour at least 0.5) and outside, in the ratio of the
            rates; `weighted`: inclusion in proportion to the rate that the covered fraction gives.
        mean, std: of pixel / 255.
        dtype: of the patches: float32, bfloat16 or float16.
        backend: see `kernels.backend`.

    Raises:
        ValueError: for tensors and settings that do not fit the above.
    """
    grid_h, grid_w = grid_of(image_BCHW, patch)
    images, length = len(image_BCHW), grid_h * grid_w
    device = image_BCHW.device
    check_tensor("image", image_BCHW, tuple(image_BCHW.shape), (torch.uint8,), device)
    check_tensor("contour", contour_BL, (images, length), (torch.float32,), device)
    check_tensor("is_valid", is_valid_BL, (images, length), (torch.bool,), device)
    check_tensor("position", position_B, (images,), (torch.int64,), device)
    if device.type == "cpu" and images:
        low, high = (bound.item() for bound in contour_BL.aminmax())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(
                "contour: got values outside [0, 1] or NaN, wanted the covered fraction of each patch"
            )
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, wanted 0 <= seed < 2**64")
    if not 1 <= keep <= length:
        raise ValueError(f"keep: got {keep} patches, wanted 1 to {length}, the number of patches of an image")
    if not 0 <= predict <= length - keep:
        raise ValueError(
            f"predict: got {predict} patches, wanted 0 to {length - keep}, the number masked of {length} "
            f"when {keep} are kept"
        )
    if draw not in get_args(Draw):
        raise ValueError(f"draw: got {draw!r}, wanted one of {', '.join(get_args(Draw))}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype: got {dtype}, wanted float32, bfloat16 or float16")
    normalization(mean, std)
    if use_triton(backend, device):
        from kernels.mask_gather import triton_kernel

        implementation = triton_kernel.mask_and_gather
    else:
        implementation = reference.mask_and_gather
    return implementation(
        image_BCHW,
        contour_BL,
        is_valid_BL,
        position_B,
        seed=seed,
        keep=keep,
        predict=predict,
        patch=patch,
        rate_inside=_quantized("keep_inside", keep_inside),
        rate_outside=_quantized("keep_outside", keep_outside),
        weighted=draw == "weighted",
        mean=mean,
        std=std,
        dtype=dtype,
    )


def rect_contour(grid: int) -> Float[Tensor, " L"]:
    """The rectangle of arXiv 2404.17926's released code on a grid of `grid` x `grid` patches, as a contour.

    Its code has a grid of 20 and masks tokens 0.25 G + 1 to 0.75 G down and 0.125 G + 1 to 0.75 G across, the
    same for every image: 30% to 80% and 15% to 80% of the side, to the nearest patch here.
    """
    top, left, end = (round(share * grid) for share in (0.30, 0.15, 0.80))
    contour = torch.zeros(grid, grid)
    contour[top:end, left:end] = 1
    return contour.flatten()


def _quantized(name: str, rate: float) -> int:
    if not 0 < rate <= 1:
        raise ValueError(f"{name}: got {rate}, wanted a keep rate in (0, 1]")
    return max(1, round(rate * RATE_ONE))
