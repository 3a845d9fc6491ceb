import dataclasses
from typing import Literal

from xpt.config import Config, MaskConfig, ModelConfig


def tiny(decoder: Literal["self", "cross"] = "self", **changes) -> Config:
    """36 tokens, widths of a few dozen."""
    model = ModelConfig(
        side=48, patch=8, width=32, depth=2, heads=2, decoder=decoder, decoder_width=16, decoder_depth=2,
        decoder_heads=2,
    )  # fmt: skip
    return Config(mask=MaskConfig(ratio=0.75), model=dataclasses.replace(model, **changes))
