"""Masked autoencoder on high-definition radiographs: mask, encode what is visible, predict what is not.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), with the masking of
"Pre-training on High Definition X-ray Images" (arXiv 2404.17926, section 3.2): the chest is masked
more than what surrounds it.

Shape suffixes: B images, C channels, L patches of an image, K visible, M predicted, P values of a
patch, D encoder width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from kernels import mask_and_gather, patch_loss, patchify
from kernels.patches import normalize_pixels
from xpt.config import Config
from xpt.models.decoder import CrossDecoder, FeatureMixtures, SelfDecoder
from xpt.models.encoder import encoder_of
from xpt.models.recompute import recomputation

CHANNELS = 1
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25
"""Of a radiograph's grey values in [0, 1]; round figures near the mean and deviation of chest films."""
ZONES = 4
"""Zones along a side of the film, of which `MAE.features` gives one mean token each."""


def all_patches(
    image_BCHW: UInt8[Tensor, "B 1 H W"], patch: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "B L P"], Int64[Tensor, "B L"]]:
    """All patches, normalised, and their ids: what the encoder takes."""
    patches_BLP = normalize_pixels(patchify(image_BCHW, patch), PIXEL_MEAN, PIXEL_STD)
    ids_L = torch.arange(patches_BLP.shape[1], device=image_BCHW.device)
    return patches_BLP.to(dtype), ids_L.expand(len(image_BCHW), -1)


class Prediction(NamedTuple):
    """What one forward pass of `MAE` gives."""

    loss: Float[Tensor, ""]
    """Mean over the images of each image's mean over its scored patches."""
    loss_B: Float[Tensor, "B"]
    """Each image's own, detached."""
    mse_BM: Float[Tensor, "B M"]
    """Each predicted patch's mean squared error, detached."""
    pred_BMP: Float[Tensor, "B M P"]
    visible_BK: Int64[Tensor, "B K"]
    predicted_BM: Int64[Tensor, "B M"]
    is_scored_BM: Bool[Tensor, "B M"]
    """False where the slot holds letterbox padding because the image has fewer masked patches than M."""


class MAE(nn.Module):
    """The model of a `Config`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.mask = config.mask
        self.patch = model.patch
        self.kept, self.predicted = config.kept, config.predicted
        self.norm_targets = model.norm_targets
        self.encoder = encoder_of(model, CHANNELS)
        self.mixtures = None
        if model.feature_maps:
            self.mixtures = FeatureMixtures(model.depth + 1, model.decoder_depth, model.width)
        decoder = {"self": SelfDecoder, "cross": CrossDecoder}[model.decoder]
        self.decoder = decoder(
            grid=model.grid,
            encoder_width=model.width,
            width=model.decoder_width,
            depth=model.decoder_depth,
            heads=model.decoder_heads,
            mlp_ratio=model.mlp_ratio,
            patch_values=CHANNELS * model.patch**2,
            attention=model.attention,
        )
        blocks = [*self.encoder.blocks, *self.decoder.blocks]
        for block, choice in zip(blocks, recomputation(config), strict=True):
            block.recompute = choice

    def forward(
        self,
        image_BCHW: UInt8[Tensor, "B C H W"],
        contour_BL: Float[Tensor, "B L"],
        is_valid_BL: Bool[Tensor, "B L"],
        position_B: Int64[Tensor, "B"],
        seed: int,
        predicted: int | None = None,
        features_only: bool = False,
    ) -> Prediction | Float[Tensor, "B F"]:
        """Mask, encode, predict, score.

        Args:
            image_BCHW: grey values, 0 to 255.
            contour_BL: share of each patch, in [0, 1], in the region that is masked more.
            is_valid_BL: False for patches of pure letterbox padding: never kept, never scored.
            position_B: the images' places in the order of samples; with `seed` they fix the masks.
            seed: of the masks.
            predicted: number of masked patches to predict per image; None: the configuration's.
            features_only: give `features` instead. An argument, because ZeRO 3 gathers parameters only in
                calls of the whole model.
        """
        if features_only:
            return self.features(image_BCHW)
        masked = mask_and_gather(
            image_BCHW,
            contour_BL.float(),
            is_valid_BL,
            position_B,
            seed=seed,
            keep=self.kept,
            predict=self.predicted if predicted is None else predicted,
            patch=self.patch,
            keep_inside=self.mask.keep_inside,
            keep_outside=self.mask.keep_outside,
            draw=self.mask.draw,
            mean=PIXEL_MEAN,
            std=PIXEL_STD,
            # Not from one named parameter: touching it outside its module makes ZeRO 3 gather it.
            dtype=next(self.parameters()).dtype,
        )
        if self.mixtures is None:
            tokens = self.encoder(masked.patches_BKP, masked.visible_BK)
        else:
            tokens = self.mixtures(list(self.encoder.feature_maps(masked.patches_BKP, masked.visible_BK)))
        pred_BMP = self.decoder(tokens, masked.visible_BK, masked.predicted_BM)
        is_scored_BM = masked.is_scored_BM.float()
        share_BM = is_scored_BM / is_scored_BM.sum(1, keepdim=True).clamp(min=1)
        loss, mse_BM = patch_loss(
            pred_BMP,
            image_BCHW,
            masked.predicted_BM,
            share_BM / len(image_BCHW),
            patch=self.patch,
            mean=PIXEL_MEAN,
            std=PIXEL_STD,
            normalize=self.norm_targets,
        )
        return Prediction(
            loss,
            (mse_BM * share_BM).sum(1),
            mse_BM,
            pred_BMP.detach(),
            masked.visible_BK,
            masked.predicted_BM,
            masked.is_scored_BM,
        )

    def features(self, image_BCHW: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        """The encoder's mean token in each of ZONES x ZONES zones, all patches visible: F = ZONES^2 D."""
        patches_BLP, ids_BL = all_patches(image_BCHW, self.patch, next(self.parameters()).dtype)
        tokens_BND = self.encoder(patches_BLP, ids_BL)
        grid = round(ids_BL.shape[1] ** 0.5)
        map_BDGG = tokens_BND[:, 1:].mT.unflatten(2, (grid, grid))
        return F.adaptive_avg_pool2d(map_BDGG.float(), ZONES).flatten(1)
