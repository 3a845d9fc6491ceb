"""Fixed 2-D sine-cosine position embeddings (MAE, appendix A; Vaswani et al. 2017 per axis)."""

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_2d(grid: int, width: int) -> Float[Tensor, "L D"]:
    """Embeddings of a `grid` x `grid` lattice in raster order, float32.

    The first half of the width encodes the column, the second the row, each as sin then cos at
    wavelengths from 2 pi to 10,000 x 2 pi, as in MAE's released code.
    """
    assert width % 4 == 0
    omega = 1.0 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(torch.arange(grid, dtype=torch.float64), omega)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis.repeat(grid, 1)
    rows = axis.repeat_interleave(grid, dim=0)
    return torch.cat([columns, rows], dim=1).float()
