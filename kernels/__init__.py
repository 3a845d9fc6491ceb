"""Fused operations for masked autoencoders on high-definition images.

Each operation has a plain PyTorch reference, a Triton kernel that is held to it, and one public function
in front of both. Importing needs torch alone; triton is imported by the first call that uses it.
"""

from kernels.mask_gather import MaskedPatches, mask_and_gather, rect_contour
from kernels.patch_loss import patch_loss
from kernels.patches import gather_patches, patchify, unpatchify

__all__ = [
    "MaskedPatches",
    "gather_patches",
    "mask_and_gather",
    "patch_loss",
    "patchify",
    "rect_contour",
    "unpatchify",
]
