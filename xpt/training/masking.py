"""Which part of each image is masked more than the rest."""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from kernels import rect_contour
from xpt.config import Config
from xpt.data.batch import Batch


def region_of(batch: Batch, config: Config) -> Float[Tensor, "B L"]:
    """Share of each patch, in [0, 1], that lies in the region which the configuration masks more.

    `contour`: the image's own chest, lungs, or the mean of the two; `rect`: the released code's
    rectangle, the same for every image; `random`: nowhere, so that all patches have one rate.
    """
    if config.mask.strategy == "contour":
        if config.mask.region == "both":
            return (batch.chest_BL + batch.lung_BL) / 2
        return {"chest": batch.chest_BL, "lung": batch.lung_BL}[config.mask.region]
    if config.mask.strategy == "rect":
        return _rect(config.model.grid, batch.chest_BL.device).expand_as(batch.chest_BL)
    return torch.zeros_like(batch.chest_BL)


@cache
def _rect(grid: int, device: torch.device) -> Tensor:
    """On the device once: a copy in each step would make the host wait for it."""
    return rect_contour(grid).to(device)
