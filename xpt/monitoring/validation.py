"""Validation loss on fixed films with fixed masks, beside what a trivial predictor would score."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kernels import gather_patches
from xpt.config import Config
from xpt.data.batch import Batch
from xpt.models.mae import PIXEL_STD, Prediction
from xpt.training.distributed import all_reduce
from xpt.training.masking import region_of

MASK_SEED = 0
"""Of the validation masks: the same for every run, so that runs can be compared."""


def predict(model: nn.Module, batch: Batch, config: Config) -> Prediction:
    """What the model, or the engine around it, makes of all masked patches; no gradients.

    The masks are fixed by the film's place in the split alone.
    """
    model.eval()
    with torch.no_grad():
        prediction: Prediction = model(
            batch.image_BCHW,
            region_of(batch, config),
            batch.is_valid_BL,
            batch.position_B,
            MASK_SEED,
            predicted=config.model.tokens - config.kept,
        )
    model.train()
    return prediction


def evaluate(model: nn.Module, batches: Iterable[Batch], config: Config) -> dict[str, float]:
    """Losses over all films of `batches` on all ranks; every rank needs the same number of batches.

    Returns:
        `val/loss`: as in training, each film's mean over its masked patches;
        `val/loss_chest`, `val/loss_outside`: over the masked patches inside and outside the chest;
        `val/patch_mean`: the loss of a predictor that knows each masked patch's mean and nothing else.
    """
    sums = torch.zeros(7, dtype=torch.float64)
    for batch in batches:
        prediction = predict(model, batch, config)
        scored_BM = prediction.is_scored_BM * batch.weight_B[:, None]
        in_chest_BM = batch.chest_BL.gather(1, prediction.predicted_BM) >= 0.5
        mean_error_BM = _patch_mean_error(batch, prediction, config)
        share_BM = scored_BM / scored_BM.sum(1, keepdim=True).clamp(min=1)
        sums = (
            sums.to(batch.image_BCHW.device)
            + torch.stack(
                [
                    (prediction.mse_BM * share_BM).sum(),
                    (mean_error_BM * share_BM).sum(),
                    batch.weight_B.sum(),
                    (prediction.mse_BM * scored_BM * in_chest_BM).sum(),
                    (scored_BM * in_chest_BM).sum(),
                    (prediction.mse_BM * scored_BM * ~in_chest_BM).sum(),
                    (scored_BM * ~in_chest_BM).sum(),
                ]
            ).double()
        )
    loss, patch_mean, films, chest, chest_count, outside, outside_count = all_reduce(sums).tolist()
    return {
        "val/loss": loss / films,
        "val/patch_mean": patch_mean / films,
        "val/loss_chest": chest / max(1.0, chest_count),
        "val/loss_outside": outside / max(1.0, outside_count),
    }


def _patch_mean_error(batch: Batch, prediction: Prediction, config: Config) -> Tensor:
    """[B, M]: mean squared error of predicting each patch's own mean, in the units of the targets."""
    true_BMP = gather_patches(batch.image_BCHW, prediction.predicted_BM, patch=config.model.patch).float()
    true_BMP = true_BMP / (255 * PIXEL_STD)
    error_BM = true_BMP.var(2, correction=0)
    if config.model.norm_targets:
        return error_BM / (true_BMP.var(2) + 1e-6)
    return error_BM
