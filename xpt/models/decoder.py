"""The two decoders: MAE's over all tokens, and CrossMAE's from masked queries to visible tokens.

Shape suffixes: B images, L patches of an image, K visible, M predicted, P values of a patch,
N = K + 1 encoder tokens (the class token first), W encoder width, D decoder width, F feature maps.

Both take the encoder's tokens and the ids of the patches to predict and return one prediction for
each of those ids, so the model does not know which one it has.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xpt.models.attention import Backend
from xpt.models.blocks import CrossBlock, SelfBlock
from xpt.models.encoder import initialize
from xpt.models.positions import sincos_2d


class Decoder(nn.Module):
    """What both decoders have: embedding, mask token, positions, blocks, and a head on predicted tokens."""

    positions_LD: Tensor

    def __init__(
        self,
        *,
        grid: int,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        patch_values: int,
        attention: Backend,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions_LD", sincos_2d(grid, width), persistent=False)
        self.blocks = nn.ModuleList(self.make_block(width, heads, mlp_ratio, attention) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, patch_values)
        initialize(self)

    def make_block(self, width: int, heads: int, mlp_ratio: float, attention: Backend) -> nn.Module:
        raise NotImplementedError


class SelfDecoder(Decoder):
    """MAE's decoder (arXiv 2111.06377): visible tokens and mask tokens attend to each other.

    The mask tokens fill a [B, L] canvas that the visible ones are written into, so no permutation is
    undone anywhere. Of the last block's output only the predicted tokens are looked at, so only they ask
    in it, and pass through the head.
    """

    def make_block(self, width: int, heads: int, mlp_ratio: float, attention: Backend) -> nn.Module:
        return SelfBlock(width, heads, mlp_ratio, attention)

    def forward(
        self,
        tokens_BNW: Float[Tensor, "B N W"],
        visible_BK: Int64[Tensor, "B K"],
        predicted_BM: Int64[Tensor, "B M"],
    ) -> Float[Tensor, "B M P"]:
        x = self.embed(tokens_BNW)
        width = x.shape[2]
        positions_LD = self.positions_LD.to(x.dtype)
        canvas_BLD = (self.mask_token + positions_LD).expand(len(x), -1, -1)
        seen_BKD = x[:, 1:] + positions_LD[visible_BK]
        canvas_BLD = canvas_BLD.scatter(1, visible_BK[..., None].expand(-1, -1, width), seen_BKD)
        x = torch.cat([x[:, :1], canvas_BLD], dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        x_BMD = last(x, predicted_BM + 1)  # the class token is the first
        return self.head(self.norm(x_BMD))


class FeatureMixtures(nn.Module):
    """For each decoder block its own learned sum of the encoder's F feature maps, normalised.

    CrossMAE, section 3.3. The weights begin as N(0, 1 / F), so a mixture is as large as one map.
    """

    def __init__(self, maps: int, mixtures: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(mixtures, maps) / maps**0.5)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(mixtures))

    def forward(self, maps: list[Float[Tensor, "B N W"]]) -> list[Float[Tensor, "B N W"]]:
        maps_FBNW = torch.stack(maps)
        return [
            norm(torch.tensordot(weight_F, maps_FBNW, dims=1))
            for weight_F, norm in zip(self.weight, self.norms, strict=True)
        ]


class CrossDecoder(Decoder):
    """CrossMAE's decoder (arXiv 2401.14391): one query per predicted patch, keys from the encoder only.

    Its cost grows with M x (K + 1), not with L squared.
    """

    def make_block(self, width: int, heads: int, mlp_ratio: float, attention: Backend) -> nn.Module:
        return CrossBlock(width, heads, mlp_ratio, attention)

    def forward(
        self,
        tokens: Float[Tensor, "B N W"] | list[Float[Tensor, "B N W"]],
        visible_BK: Int64[Tensor, "B K"],
        predicted_BM: Int64[Tensor, "B M"],
    ) -> Float[Tensor, "B M P"]:
        """`tokens`: what all blocks attend to, or for each block its own."""
        each = [tokens] if isinstance(tokens, Tensor) else tokens
        memories = [self.remember(tokens_BNW, visible_BK) for tokens_BNW in each]
        x_BMD = self.mask_token + self.positions_LD[predicted_BM].to(memories[0].dtype)
        for number, block in enumerate(self.blocks):
            x_BMD = block(x_BMD, memories[number % len(memories)])
        return self.head(self.norm(x_BMD))

    def remember(
        self, tokens_BNW: Float[Tensor, "B N W"], visible_BK: Int64[Tensor, "B K"]
    ) -> Float[Tensor, "B N D"]:
        """Encoder tokens in the decoder's width, with its positions."""
        memory = self.embed(tokens_BNW)
        seen_BKD = memory[:, 1:] + self.positions_LD[visible_BK].to(memory.dtype)
        return torch.cat([memory[:, :1], seen_BKD], dim=1)
