import dataclasses
from typing import Literal

import pytest
import torch

from xpt.config import Config, MaskConfig, ModelConfig


def tiny(decoder: Literal["self", "cross"] = "self", **changes) -> Config:
    """36 tokens, widths of a few dozen."""
    model = ModelConfig(
        side=48, patch=8, width=32, depth=2, heads=2, decoder=decoder, decoder_width=16, decoder_depth=2,
        decoder_heads=2,
    )  # fmt: skip
    return Config(mask=MaskConfig(ratio=0.75), model=dataclasses.replace(model, **changes))


@pytest.fixture
def films():
    """image_BCHW, contour_BL, is_valid_BL, position_B of 3 films of the size of `tiny`."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 1, 48, 48), generator=generator, dtype=torch.uint8)
    contour = (torch.rand(3, 36, generator=generator) > 0.5).float()
    valid = torch.ones(3, 6, 6, dtype=torch.bool)
    valid[1, :, 0] = False  # a letterbox bar on the left
    return image, contour, valid.flatten(1), torch.tensor([7, 8, 9])
