"""Every kernel of the package with the arguments of the paper's model: 1280 pixels, patches of 16.

What is compiled ahead of time, in the tests and for `docs/kernels.md`, is listed here once. Tensors are never
read, so two images stand for any batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kernels.mask_gather import triton_kernel as mask_gather
from kernels.mask_gather.masked_patches import MaskedPatches
from kernels.patch_loss import triton_kernel as patch_loss
from kernels.patch_loss.reference import LossAndGradient

IMAGES, SIDE, PATCH, LENGTH = 2, 1280, 16, 6400
KEPT = {0.75: 1600, 0.90: 640}
"""Visible patches by mask ratio."""
DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel and what a launch hands to it."""

    name: str
    op: str
    """"mask_gather", "patch_loss" or "scale"."""
    dtype: torch.dtype
    kept: int
    predicted: int
    kernel: Any  # a JITFunction, which pyright would take for a method
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def launches() -> Iterator[Launch]:
    """All of them, at 75% masked with all masked patches predicted but where the name says otherwise."""
    for dtype in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        for ratio, keep in KEPT.items():
            for weighted in (False, True):
                draw = "weighted" if weighted else "stratified"
                yield mask_gather_launch(
                    f"mask_gather, {draw}, {ratio:.0%} masked, {kind}", dtype, keep=keep, weighted=weighted
                )
        for normalize in (False, True):
            targets = "normalised targets" if normalize else "plain targets"
            yield patch_loss_launch(f"patch_loss, {targets}, {kind}", dtype, normalize=normalize)
        gradient = torch.empty(IMAGES, LENGTH - KEPT[0.75], PATCH**2, dtype=dtype)
        yield Launch(
            name=f"patch_loss, scaling the gradient, {kind}",
            op="scale",
            dtype=dtype,
            kept=KEPT[0.75],
            predicted=LENGTH - KEPT[0.75],
            kernel=patch_loss.scale_kernel,
            arguments=(gradient, torch.empty(()), gradient.numel()),
            constants={"BLOCK": patch_loss.SCALE_BLOCK},
        )


def mask_gather_launch(name: str, dtype: torch.dtype, *, keep: int, weighted: bool) -> Launch:
    predict = LENGTH - keep
    out = MaskedPatches(
        torch.empty(IMAGES, keep, PATCH**2, dtype=dtype),
        torch.empty(IMAGES, keep, dtype=torch.int64),
        torch.empty(IMAGES, predict, dtype=torch.int64),
        torch.empty(IMAGES, predict, dtype=torch.bool),
        torch.empty(IMAGES, LENGTH, dtype=torch.bool),
    )
    arguments, constants = mask_gather.launch_arguments(
        _image(),
        torch.empty(IMAGES, LENGTH),
        torch.empty(IMAGES, LENGTH, dtype=torch.bool),
        torch.empty(IMAGES, dtype=torch.int64),
        out,
        seed=5,
        patch=PATCH,
        rate_inside=3277,
        rate_outside=9830,
        weighted=weighted,
        mean=0.5,
        std=0.25,
    )
    return Launch(
        name=name,
        op="mask_gather",
        dtype=dtype,
        kept=keep,
        predicted=predict,
        kernel=mask_gather.mask_gather_kernel,
        arguments=arguments,
        constants=constants,
    )


def patch_loss_launch(
    name: str, dtype: torch.dtype, *, normalize: bool, with_gradient: bool = True
) -> Launch:
    predict = LENGTH - KEPT[0.75]
    out = LossAndGradient(
        torch.empty(IMAGES * predict // 8),
        torch.empty(IMAGES, predict),
        torch.empty(IMAGES, predict, PATCH**2, dtype=dtype) if with_gradient else None,
    )
    arguments, constants = patch_loss.launch_arguments(
        torch.empty(IMAGES, predict, PATCH**2, dtype=dtype),
        _image(),
        torch.empty(IMAGES, predict, dtype=torch.int64),
        torch.empty(IMAGES, predict),
        out,
        patch=PATCH,
        mean=0.5,
        std=0.25,
        normalize=normalize,
    )
    return Launch(
        name=name,
        op="patch_loss",
        dtype=dtype,
        kept=KEPT[0.75],
        predicted=predict,
        kernel=patch_loss.patch_loss_kernel,
        arguments=arguments,
        constants=constants,
    )


def _image() -> torch.Tensor:
    return torch.empty(IMAGES, 1, SIDE, SIDE, dtype=torch.uint8)
