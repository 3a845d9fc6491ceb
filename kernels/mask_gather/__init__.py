"""Contour-guided masking and the gathering of the visible patches."""

from kernels.mask_gather.masked_patches import MaskedPatches
from kernels.mask_gather.op import Draw, mask_and_gather, rect_contour

__all__ = ["Draw", "MaskedPatches", "mask_and_gather", "rect_contour"]
