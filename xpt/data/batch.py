"""What the model gets."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from shards_tool import schema

CONTOUR_SAMPLES = 4
"""Contour samples along a side of a patch: the covered share comes in steps of 1/16."""

_CHEST_FROM = (schema.CONTOUR_OUTSIDE + schema.CONTOUR_CHEST) // 2
_LUNG_FROM = (schema.CONTOUR_CHEST + schema.CONTOUR_LUNG + 1) // 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B films as squares of S pixels, which are L patches in raster order. Tensors are on the device."""

    image_BCHW: UInt8[Tensor, "B 1 S S"]
    chest_BL: Float32[Tensor, "B L"]
    """Share of the patch that the chest region covers, lungs included."""
    lung_BL: Float32[Tensor, "B L"]
    is_valid_BL: Bool[Tensor, "B L"]
    """False where the patch shows letterbox bars only."""
    position_B: Int64[Tensor, "B"]
    """Place in the order of all images; in an evaluation, the film's row."""
    weight_B: Float32[Tensor, "B"]
    """1; in an evaluation 0 for what fills the last batch or stands in for a damaged film."""
    window_B4: Float32[np.ndarray, "B 4"]
    """Part of the stored square that the film's square shows: top, left, bottom, right, shares of its side;
    left beyond right where it is mirrored."""
    keys: list[str]
    """Of the films in the batch, stand-ins under their own key."""
    replaced: int
    """Films of this batch that stand in for damaged ones."""

    @property
    def counted(self) -> list[int]:
        """Places of the films whose `weight_B` is not 0."""
        return self.weight_B.nonzero().flatten().tolist()


def coverage(
    contour_BCC: UInt8[Tensor, "B C C"],
) -> tuple[Float32[Tensor, "B L"], Float32[Tensor, "B L"]]:
    """Shares of each patch covered by the chest region (lungs included) and by the lungs.

    `contour_BCC` has CONTOUR_SAMPLES x CONTOUR_SAMPLES values of the contour picture per patch.
    """
    batch, side, _ = contour_BCC.shape
    grid = side // CONTOUR_SAMPLES
    contour_BGSGS = contour_BCC.reshape(batch, grid, CONTOUR_SAMPLES, grid, CONTOUR_SAMPLES)
    chest_BL, lung_BL = (
        (contour_BGSGS >= lowest).float().mean(dim=(2, 4)).flatten(1) for lowest in (_CHEST_FROM, _LUNG_FROM)
    )
    return chest_BL, lung_BL
