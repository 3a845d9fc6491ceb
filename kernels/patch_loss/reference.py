"""The patch loss in plain PyTorch: the definition that the Triton kernel is held to.

Shape suffixes: B images, C channels, M predicted patches of an image, P values of a patch.

The target of a patch is (pixel / 255 - mean) / std, or that minus its mean over the patch, divided by
sqrt(variance + 1e-6) with the unbiased variance, as in the released code of MAE (arXiv 2111.06377). The mean
and standard deviation of a patch are those of whole numbers, so P * pixel - sum(pixels) is exact in fp32
and nearly flat patches lose no digits.

The gradient of weight * mean(difference^2) is difference * 2 * weight / P. It costs one product while the
difference is at hand, and another reading of prediction and image afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kernels.patches import gather_patches, normalization

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int64, UInt8

VARIANCE_EPSILON = 1e-6


class LossAndGradient(NamedTuple):
    loss: Float32[Tensor, ""]
    mse_BM: Float32[Tensor, "B M"]
    gradient_BMP: Float[Tensor, "B M P"] | None
    """Of the loss by the prediction, where asked for, in `gradient_dtype`."""


def loss_and_gradient(
    pred_BMP: Float[Tensor, "B M P"],
    image_BCHW: UInt8[Tensor, "B C H W"],
    ids_BM: Int64[Tensor, "B M"],
    weight_BM: Float32[Tensor, "B M"],
    *,
    patch: int,
    mean: float,
    std: float,
    normalize: bool,
    with_gradient: bool,
) -> LossAndGradient:
    """As the public function, without its checks and without autograd."""
    values = pred_BMP.shape[2]
    minus_target = minus_normalized_target if normalize else minus_plain_target
    difference_BMP = minus_target(image_BCHW, ids_BM, patch, mean, std).add_(pred_BMP)
    mse_BM = torch.linalg.vector_norm(difference_BMP, dim=2).square_().div_(values)
    is_unscored_BM = weight_BM == 0
    # Not 0 * mse: what is not scored must not count even where the prediction overflowed.
    loss = (weight_BM * mse_BM).masked_fill_(is_unscored_BM, 0).sum()
    if not with_gradient:
        return LossAndGradient(loss, mse_BM, None)
    gradient_BMP = difference_BMP.mul_((weight_BM * (2 / values))[..., None])
    if is_unscored_BM.any():
        gradient_BMP[is_unscored_BM] = 0
    return LossAndGradient(loss, mse_BM, gradient_BMP.to(gradient_dtype(pred_BMP.dtype)))


def minus_plain_target(
    image_BCHW: UInt8[Tensor, "B C H W"], ids_BM: Int64[Tensor, "B M"], patch: int, mean: float, std: float
) -> Float32[Tensor, "B M P"]:
    scale, bias = normalization(mean, std)
    return gather_patches(image_BCHW, ids_BM, patch).float().mul_(-scale).sub_(bias)


def minus_normalized_target(
    image_BCHW: UInt8[Tensor, "B C H W"], ids_BM: Int64[Tensor, "B M"], patch: int, mean: float, std: float
) -> Float32[Tensor, "B M P"]:
    """The mean over the image set cancels; the standard deviation only scales the epsilon."""
    scale, _ = normalization(mean, std)
    pixels_BMP = gather_patches(image_BCHW, ids_BM, patch).float()
    values = pixels_BMP.shape[2]
    centred_BMP = pixels_BMP.mul_(values).sub_(pixels_BMP.sum(2, keepdim=True) / values)
    norm_BM1 = torch.linalg.vector_norm(centred_BMP, dim=2, keepdim=True)
    deviation_BM1 = norm_BM1 * (scale / values / (values - 1) ** 0.5)
    return centred_BMP.mul_(-scale / values / (deviation_BM1.square() + VARIANCE_EPSILON).sqrt())


def scale_gradient(gradient_BMP: Tensor, factor: Tensor) -> None:
    """Multiplies in place by the scalar `factor`."""
    value = factor.item()
    if value != 1:
        gradient_BMP.mul_(value)


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of the prediction, but fp32 for fp16: a weight of 1 / (B * M) takes unscaled gradients below
    the smallest fp16 number, before loss scaling can raise them."""
    return torch.float32 if dtype == torch.float16 else dtype
