"""What masking makes of a batch. Shape suffixes as in `kernels/mask_gather/reference.py`."""

from typing import NamedTuple

from torch import Tensor


class MaskedPatches(NamedTuple):
    """The visible patches of a batch, and which patches are to be predicted."""

    patches_BKP: Tensor
    """Floating: normalised values of the visible patches, in the order (C, y, x)."""
    visible_BK: Tensor
    """int64, strictly increasing."""
    predicted_BM: Tensor
    """int64, strictly increasing, all of them masked."""
    is_scored_BM: Tensor
    """bool, False where the predicted patch is padding."""
    is_masked_BL: Tensor
    """bool, True where masked: the complement of the visible patches."""
