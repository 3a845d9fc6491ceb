"""The public function of the patch loss: checks, one of two implementations, and autograd around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import Backend, use_triton
from kernels.checks import check_ids, check_tensor
from kernels.patch_loss import reference
from kernels.patch_loss.reference import LossAndGradient
from kernels.patches import grid_of, normalization

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int64, UInt8


def patch_loss(
    pred_BMP: Float[Tensor, "B M P"],
    image_BCHW: UInt8[Tensor, "B C H W"],
    ids_BM: Int64[Tensor, "B M"],
    weight_BM: Float32[Tensor, "B M"],
    *,
    patch: int,
    mean: float,
    std: float,
    normalize: bool = False,
    backend: Backend = "auto",
) -> tuple[Float32[Tensor, ""], Float32[Tensor, "B M"]]:
    """(loss, mse): loss = sum(weight * mse), mse = each patch's mean of (prediction - target)^2.

    The target is cut out of the uint8 image: (pixel / 255 - mean) / std, with `normalize` each patch's own
    normalisation as in MAE. Sums are in fp32. The gradient is made together with the loss, so a loss can
    be differentiated once; with autograd off it is not made at all. A patch of weight 0 adds nothing to
    the loss and gets a gradient of exactly 0, whatever was predicted.

    Args:
        pred_BMP: predictions, float32, bfloat16 or float16, with values in the order (C, y, x).
        image_BCHW: grey or colour values, 0 to 255; sides are multiples of `patch`.
        ids_BM: which patches, raster order, 0 to L - 1; checked on the CPU only.
        weight_BM: of each patch in the loss.
        patch: side of a patch, pixels.
        mean, std: of pixel / 255.
        normalize: normalise the target of each patch by its own mean and variance.
        backend: see `kernels.backend`.

    Returns:
        The loss, differentiable by `pred_BMP`, and the errors, detached.

    Raises:
        ValueError: for tensors and settings that do not fit the above.
        RuntimeError: at a second backward through the same loss.
    """
    grid_h, grid_w = grid_of(image_BCHW, patch)
    device, (images, channels) = image_BCHW.device, image_BCHW.shape[:2]
    values = channels * patch * patch
    predicted = pred_BMP.shape[1] if pred_BMP.ndim > 1 else 0
    floats = (torch.float32, torch.bfloat16, torch.float16)
    check_tensor("image", image_BCHW, tuple(image_BCHW.shape), (torch.uint8,), device)
    check_tensor("pred", pred_BMP, (images, predicted, values), floats, device)
    check_tensor("ids", ids_BM, (images, predicted), (torch.int64,), device)
    check_tensor("weight", weight_BM, (images, predicted), (torch.float32,), device)
    check_ids(ids_BM, grid_h * grid_w)
    normalization(mean, std)
    if normalize and values < 2:
        raise ValueError(
            "normalize: got patches of 1 value, which have no variance; wanted at least 2 values"
        )
    if use_triton(backend, device):
        from kernels.patch_loss import triton_kernel as implementation
    else:
        implementation = reference

    def compute(with_gradient: bool) -> LossAndGradient:
        return implementation.loss_and_gradient(
            pred_BMP.detach(),
            image_BCHW,
            ids_BM,
            weight_BM.detach(),
            patch=patch,
            mean=mean,
            std=std,
            normalize=normalize,
            with_gradient=with_gradient,
        )

    if torch.is_grad_enabled() and pred_BMP.requires_grad:
        return _PatchLoss.apply(pred_BMP, compute, implementation.scale_gradient)
    result = compute(with_gradient=False)
    return result.loss, result.mse_BM


class _PatchLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch documents no type that has our attributes
        pred_BMP: Tensor,
        compute: Callable[[bool], LossAndGradient],
        scale_gradient: Callable[[Tensor, Tensor], None],
    ) -> tuple[Tensor, Tensor]:
        loss, mse_BM, ctx.gradient_BMP = compute(True)
        ctx.dtype, ctx.scale_gradient = pred_BMP.dtype, scale_gradient
        ctx.mark_non_differentiable(mse_BM)
        return loss, mse_BM

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        grad_loss: Tensor,
        _: Tensor,
    ) -> tuple[Tensor, None, None]:
        gradient_BMP, ctx.gradient_BMP = ctx.gradient_BMP, None
        if gradient_BMP is None:
            raise RuntimeError(
                "patch_loss: this loss was differentiated before, and its gradient was scaled in place and "
                "handed on; call patch_loss again for a second backward"
            )
        ctx.scale_gradient(gradient_BMP, grad_loss)
        return gradient_BMP.to(ctx.dtype), None, None
