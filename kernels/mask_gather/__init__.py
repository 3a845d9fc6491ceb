"""Contour-guided masking and the gathering of the visible patches."""

from kernels.mask_gather.op import Draw, mask_and_gather, rect_contour
from kernels.mask_gather.reference import MaskedPatches

__all__ = ["Draw", "MaskedPatches", "mask_and_gather", "rect_contour"]
