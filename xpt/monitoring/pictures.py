"""Reconstruction pictures: the film, what the encoder saw of it, what the decoder made of that."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from kernels import patchify, unpatchify
from xpt.config import Config
from xpt.data.batch import Batch
from xpt.models.mae import PIXEL_MEAN, PIXEL_STD, Prediction
from xpt.training.masking import region_of

CONTOUR_COLOUR = (255, 176, 0)
MASKED_GREY = 40
HEADER = 28
"""Height of the line of titles, pixels."""


def reconstruction_sheet(
    made: Sequence[tuple[Batch, Prediction]], config: Config
) -> UInt8[np.ndarray, "h w 3"]:
    """One row per film: input, visible patches with the contour, reconstruction.

    The reconstruction shows the predicted patches among the visible ones. With normalised targets a
    prediction has no mean and contrast of its own; those of the true patch are lent to it, and the
    title says so.
    """
    rows = [row for batch, prediction in made for row in _rows(batch, prediction, config)]
    lent = " (mean, contrast of each patch given)" if config.model.norm_targets else ""
    titles = ("input", "visible patches, contour", "reconstruction" + lent)
    return np.concatenate([_header(titles, config.model.side), *rows])


def _rows(batch: Batch, prediction: Prediction, config: Config) -> Iterator[np.ndarray]:
    patch, grid = config.model.patch, config.model.grid
    true_BLP = patchify(batch.image_BCHW, patch).float()
    is_inside_BGG = (region_of(batch, config) >= 0.5).reshape(-1, grid, grid).cpu().numpy()
    for film, true_LP in enumerate(true_BLP):
        if not batch.weight_B[film]:  # fills the last batch
            continue
        visible = prediction.visible_BK[film]
        scored = prediction.is_scored_BM[film]
        predicted = prediction.predicted_BM[film][scored]
        pred = prediction.pred_BMP[film][scored].float()
        seen_LP = torch.full_like(true_LP, MASKED_GREY)
        seen_LP[visible] = true_LP[visible]
        made_LP = true_LP.clone()  # letterbox padding is never predicted and stays as it is
        made_LP[predicted] = _grey(pred, true_LP[predicted], norm_targets=config.model.norm_targets)
        panels = [_panel(patches, grid, patch) for patches in (true_LP, seen_LP, made_LP)]
        panels[1] = _with_contour(panels[1], is_inside_BGG[film], patch)
        yield np.concatenate(panels, axis=1)


def _grey(pred: Tensor, true: Tensor, *, norm_targets: bool) -> Tensor:
    """Predictions as grey values from 0 to 255."""
    if norm_targets:
        return pred * true.std(1, keepdim=True) + true.mean(1, keepdim=True)
    return (pred * PIXEL_STD + PIXEL_MEAN) * 255


def _panel(patches_LP: Tensor, grid: int, patch: int) -> np.ndarray:
    grey_HW = unpatchify(patches_LP[None], grid, grid, patch, 1)[0, 0]
    return grey_HW.round().clamp(0, 255).byte().cpu().numpy()[..., None].repeat(3, axis=2)


def _with_contour(picture: np.ndarray, is_inside_GG: np.ndarray, patch: int) -> np.ndarray:
    inside = is_inside_GG.repeat(patch, 0).repeat(patch, 1).astype(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    thickness = max(1, picture.shape[0] // 320)
    return cv2.drawContours(np.ascontiguousarray(picture), outlines, -1, CONTOUR_COLOUR, thickness)


def _header(titles: tuple[str, ...], width: int) -> np.ndarray:
    header = np.zeros((HEADER, width * len(titles), 3), np.uint8)
    for i, title in enumerate(titles):
        place = (i * width + 6, HEADER - 9)
        cv2.putText(header, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (230, 230, 230), 1, cv2.LINE_AA)
    return header
