import dataclasses

import numpy as np
import torch

from kernels import rect_contour
from xpt.config import Config
from xpt.data.batch import Batch
from xpt.training.masking import region_of


def test_the_region_is_chest_lung_or_their_mean():
    generator = torch.Generator().manual_seed(0)
    chest = torch.rand(2, 6400, generator=generator)
    batch = Batch(
        image_BCHW=torch.zeros(2, 1, 1280, 1280, dtype=torch.uint8),
        chest_BL=chest,
        lung_BL=chest / 4,
        is_valid_BL=torch.ones(2, 6400, dtype=torch.bool),
        position_B=torch.arange(2),
        weight_B=torch.ones(2),
        window_B4=np.tile(np.array([0, 0, 1, 1], np.float32), (2, 1)),
        keys=["a", "b"],
        replaced=0,
    )

    def region(**changes) -> torch.Tensor:
        config = Config()
        config = dataclasses.replace(config, mask=dataclasses.replace(config.mask, **changes))
        return region_of(batch, config)

    assert torch.equal(region(), chest)
    assert torch.equal(region(region="lung"), chest / 4)
    torch.testing.assert_close(region(region="both"), chest * 0.625)
    assert torch.equal(region(strategy="random"), torch.zeros(2, 6400))
    assert torch.equal(region(strategy="rect"), rect_contour(80).expand(2, -1))
