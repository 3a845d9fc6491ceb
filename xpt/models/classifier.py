"""The encoder on all patches of a film, and a head.

Shape suffixes: B images, L patches of an image, P values of a patch, D width, C outputs, H heads,
E width of a head, W width of what the head gets, G patches along a side.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from xpt.config import EncoderConfig
from xpt.models.encoder import encoder_of
from xpt.models.mae import CHANNELS, all_patches

Pool = Literal["mean", "grid", "cls", "attentive"]
CELLS = 7
"""Cells along a side of the pool `grid`."""


def mean_of_valid(
    tokens_BLD: Float[Tensor, "B L D"], is_valid_BL: Bool[Tensor, "B L"]
) -> Float[Tensor, "B D"]:
    """Mean of the tokens of patches that show film; 0 where none does."""
    share_BL = is_valid_BL / is_valid_BL.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bld,bl->bd", tokens_BLD, share_BL.to(tokens_BLD.dtype))


class AttentivePool(nn.Module):
    """One learned query per head looks at all patches; 6,400 patches cost next to nothing."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_token = nn.Parameter(torch.empty(heads, width // heads))
        nn.init.normal_(self.query_token, std=0.02)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, tokens_BLD: Float[Tensor, "B L D"], is_valid_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B D"]:
        key_BLHE, value_BLHE = self.kv(tokens_BLD).unflatten(2, (2, self.heads, -1)).unbind(2)
        score_BLH = (key_BLHE * self.query_token).sum(3).float() * key_BLHE.shape[3] ** -0.5
        score_BLH = score_BLH.masked_fill(~is_valid_BL[..., None], -torch.inf)
        share_BLH = score_BLH.softmax(1).to(value_BLHE.dtype)
        return self.proj((share_BLH[..., None] * value_BLHE).sum(1).flatten(1))


class Classifier(nn.Module):
    """Logits of C findings or classes. Patches of pure letterbox padding are seen but not pooled.

    `is_frozen`: the encoder computes no gradients.
    """

    def __init__(
        self, model: EncoderConfig, outputs: int, *, pool: Pool, drop_path: float, is_frozen: bool
    ) -> None:
        super().__init__()
        self.patch, self.pool, self.is_frozen = model.patch, pool, is_frozen
        self.encoder = encoder_of(model, CHANNELS, drop_path=0.0 if is_frozen else drop_path)
        self.encoder.requires_grad_(not is_frozen)
        if pool == "attentive":
            self.attentive = AttentivePool(model.width, model.heads)
        width = model.width * CELLS**2 if pool == "grid" else model.width
        # The mean of many normalised tokens is small: without this a linear head learns slowly.
        self.head_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)  # MAE's fine-tuning: begin undecided
        nn.init.zeros_(self.head.bias)

    def forward(
        self, image_BCHW: UInt8[Tensor, "B 1 H W"], is_valid_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B C"]:
        return self.classify(self.tokens(image_BCHW), is_valid_BL)

    def tokens(self, image_BCHW: UInt8[Tensor, "B 1 H W"]) -> Float[Tensor, "B N D"]:
        """Normalised tokens of all patches, the class token first: N = L + 1."""
        patches_BLP, ids_BL = self.patches(image_BCHW)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            return self.encoder(patches_BLP, ids_BL)

    def patches(
        self, image_BCHW: UInt8[Tensor, "B 1 H W"]
    ) -> tuple[Float[Tensor, "B L P"], Int64[Tensor, "B L"]]:
        # Not from one named parameter: touching it outside its module makes ZeRO 3 gather it.
        return all_patches(image_BCHW, self.patch, next(self.parameters()).dtype)

    def pooled(
        self, tokens_BND: Float[Tensor, "B N D"], is_valid_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B W"]:
        """What the head looks at: N = L + 1 tokens to one vector, of CELLS^2 D values for `grid`, else D."""
        if self.pool == "cls":
            return tokens_BND[:, 0]
        if self.pool == "grid":
            grid = round(is_valid_BL.shape[1] ** 0.5)
            map_BDGG = (tokens_BND[:, 1:] * is_valid_BL[..., None]).mT.unflatten(2, (grid, grid))
            return F.adaptive_avg_pool2d(map_BDGG, CELLS).flatten(1)
        if self.pool == "attentive":
            return self.attentive(tokens_BND[:, 1:], is_valid_BL)
        return mean_of_valid(tokens_BND[:, 1:], is_valid_BL)

    def classify(
        self, tokens_BND: Float[Tensor, "B N D"], is_valid_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B C"]:
        return self.head(self.head_norm(self.pooled(tokens_BND, is_valid_BL)))
