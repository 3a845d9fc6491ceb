"""Images as patches: cutting out, putting together, and the grid that both use.

Shape suffixes: B images, C channels, L patches of an image, N chosen patches, P = C * patch * patch.

Patch l = row * grid_width + column (raster order). The values of a patch are ordered (C, y, x), as in the
flattened weight of timm's PatchEmbed convolution, so that the convolution is a linear layer on patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.checks import check_ids, check_tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped, UInt8


def grid_of(image_BCHW: Tensor, patch: int) -> tuple[int, int]:
    """(grid height, grid width) of images cut into patches of `patch` x `patch` pixels.

    Raises:
        ValueError: where the image is not [B, C, H, W] or its sides are not multiples of `patch`.
    """
    if image_BCHW.ndim != 4:
        raise ValueError(f"image: got shape {tuple(image_BCHW.shape)}, wanted [B, C, H, W]")
    height, width = image_BCHW.shape[2:]
    if patch < 1 or height % patch or width % patch or not height or not width:
        raise ValueError(
            f"image: got {height} x {width} pixels, wanted multiples of the patch, {patch}; "
            "resize or pad the image, or choose another patch"
        )
    return height // patch, width // patch


def patchify(image_BCHW: Shaped[Tensor, "B C H W"], patch: int) -> Shaped[Tensor, "B L P"]:
    """All patches of each image, in the image's dtype. Raises ValueError as `grid_of` does."""
    grid_h, grid_w = grid_of(image_BCHW, patch)
    tiles = image_BCHW.unflatten(3, (grid_w, patch)).unflatten(2, (grid_h, patch))  # B C gh y gw x
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(
    patches_BLP: Shaped[Tensor, "B L P"], grid_h: int, grid_w: int, patch: int, channels: int
) -> Shaped[Tensor, "B C H W"]:
    """The images whose `patchify` is `patches_BLP`. Raises ValueError for sizes that do not fit."""
    wanted = (grid_h * grid_w, channels * patch * patch)
    if patches_BLP.ndim != 3 or tuple(patches_BLP.shape[1:]) != wanted:
        raise ValueError(
            f"patches: got shape {tuple(patches_BLP.shape)}, wanted [B, {wanted[0]}, {wanted[1]}] for a grid "
            f"of {grid_h} x {grid_w}, patch {patch} and {channels} channels"
        )
    tiles = patches_BLP.unflatten(2, (channels, patch, patch)).unflatten(1, (grid_h, grid_w))
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def gather_patches(
    image_BCHW: UInt8[Tensor, "B C H W"], ids_BN: Int64[Tensor, "B N"], patch: int
) -> UInt8[Tensor, "B N P"]:
    """The patches of each image with the given ids, without cutting out the others.

    Raises ValueError as `grid_of` does, and for other dtypes, shapes or (on the CPU) ids out of range.
    """
    grid_h, grid_w = grid_of(image_BCHW, patch)
    check_tensor("image", image_BCHW, tuple(image_BCHW.shape), (torch.uint8,), image_BCHW.device)
    check_tensor("ids", ids_BN, (len(image_BCHW), *ids_BN.shape[1:2]), (torch.int64,), image_BCHW.device)
    check_ids(ids_BN, grid_h * grid_w)
    if not ids_BN.numel():
        return image_BCHW.new_empty(*ids_BN.shape, image_BCHW.shape[1] * patch * patch)
    words_BCHV = _as_words(image_BCHW, patch)
    words_per_row = words_BCHV.shape[-1] // grid_w
    tiles = words_BCHV.unflatten(3, (grid_w, words_per_row)).unflatten(2, (grid_h, patch))
    image_B1 = torch.arange(len(ids_BN), device=ids_BN.device)[:, None]
    # Indices apart from each other put their shape first: [B, N, C, y, words].
    chosen = tiles[image_B1, :, ids_BN // grid_w, :, ids_BN % grid_w]
    return chosen.contiguous().view(torch.uint8).flatten(2)


def normalization(mean: float, std: float) -> tuple[float, float]:
    """(scale, bias) such that pixel * scale + bias = (pixel / 255 - mean) / std.

    Raises:
        ValueError: for a standard deviation that is not positive.
    """
    if not std > 0:
        raise ValueError(f"std: got {std}, wanted a positive number")
    return 1 / (255 * std), -mean / std


def normalize_pixels(pixels: UInt8[Tensor, "*S"], mean: float, std: float) -> Float[Tensor, "*S"]:
    """(pixel / 255 - mean) / std in fp32, as one product and one sum."""
    scale, bias = normalization(mean, std)
    return pixels.float().mul_(scale).add_(bias)


def _as_words(image_BCHW: Tensor, patch: int) -> Tensor:
    """The same bytes as the widest elements of which a row of a patch is made.

    Indexing costs by the element: a row of 16 pixels as one element of 16 bytes is gathered twenty times
    faster on a CPU than as 16 bytes. Indexing copies elements unseen, so any type of the right size does.
    """
    # Of a dimension of size 1, "contiguous" leaves the stride open, but a view as wider elements does not.
    image_BCHW = image_BCHW.contiguous().reshape(-1).view(image_BCHW.shape)
    for dtype in (torch.complex128, torch.int64, torch.int32, torch.int16):
        if patch % dtype.itemsize == 0 and image_BCHW.data_ptr() % dtype.itemsize == 0:
            return image_BCHW.view(dtype)
    return image_BCHW
