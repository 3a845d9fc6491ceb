"""timm's VisionTransformer, fed with gathered patches instead of an image.

Shape suffixes: B images, L patches of an image, K visible ones, P values of a patch, D width.

The state dict is timm's, key for key: what this trains, `timm.create_model` loads.
"""

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from xpt.config import EncoderConfig
from xpt.models.attention import Backend
from xpt.models.blocks import SelfBlock
from xpt.models.positions import sincos_2d


class PatchProjection(nn.Conv2d):
    """The patch embedding's convolution, applied to patches that are already cut out.

    A convolution whose stride is its kernel is a linear map of each patch. It stays a Conv2d so that
    its weight has timm's name and shape [D, C, p, p].
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim == 4:
            return super().forward(input)
        return F.linear(input, self.weight.flatten(1), self.bias)


class Encoder(VisionTransformer):
    """ViT with fixed sine-cosine positions, a class token and no head."""

    pos_embed: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    cls_token: nn.Parameter  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        *,
        side: int,
        patch: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        attention: Backend,
        drop_path: float = 0.0,
    ) -> None:
        def block(*, drop_path: float, **_: object) -> SelfBlock:
            return SelfBlock(width, heads, mlp_ratio, attention, drop_path)

        super().__init__(
            img_size=side,
            patch_size=patch,
            in_chans=channels,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path,
            weight_init="skip",
            block_fn=block,  # pyright: ignore[reportArgumentType]  a function does as well as a class
        )
        self.patch_embed.proj = PatchProjection(channels, width, patch, stride=patch)
        # A buffer, not a frozen parameter: same key in the state dict, but no optimizer, no ZeRO
        # partition and no communication for numbers that never change.
        del self.pos_embed
        positions = sincos_2d(side // patch, width)
        self.register_buffer("pos_embed", torch.cat([torch.zeros(1, width), positions])[None])
        initialize(self)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, patches_BKP: Float[Tensor, "B K P"], ids_BK: Int64[Tensor, "B K"]
    ) -> Float[Tensor, "B K+1 D"]:
        """Normalised tokens, the class token first; arguments as of `feature_maps`."""
        (last_BND,) = deque(self.feature_maps(patches_BKP, ids_BK), maxlen=1)
        return self.norm(last_BND)

    def feature_maps(
        self, patches_BKP: Float[Tensor, "B K P"], ids_BK: Int64[Tensor, "B K"]
    ) -> Iterator[Float[Tensor, "B K+1 D"]]:
        """The embedded patches and every block's output, the class token first, not normalised.

        Args:
            patches_BKP: normalised pixel values of the visible patches, channel-major.
            ids_BK: their raster-order ids in [0, L).
        """
        dtype = patches_BKP.dtype  # DeepSpeed casts parameters, not buffers
        x_BKD = self.patch_embed.proj(patches_BKP) + self.pos_embed[0, 1:][ids_BK].to(dtype)
        cls_B1D = (self.cls_token + self.pos_embed[:, :1].to(dtype)).expand(x_BKD.shape[0], -1, -1)
        x = torch.cat([cls_B1D, x_BKD], dim=1)
        yield x
        for block in self.blocks:
            x = block(x)
            yield x


def encoder_of(model: EncoderConfig, channels: int, *, drop_path: float = 0.0) -> Encoder:
    """A new encoder for a configuration."""
    encoder = Encoder(
        side=model.side,
        patch=model.patch,
        channels=channels,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        attention=model.attention,
        drop_path=drop_path,
    )
    for block in encoder.blocks:
        assert isinstance(block, SelfBlock)
        block.recompute = model.activation_checkpointing
    return encoder


def initialize(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform matrices (the patch projection as one), zero biases, N(0, 0.02)
    class token."""
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(m.weight.data.flatten(1))
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.LayerNorm):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("token"):
            nn.init.normal_(parameter, std=0.02)
