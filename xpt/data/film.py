"""A single film as a model gets it, read as the shard tool reads it.

Shape suffixes: V films of a study, L patches.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from shards_tool.contour import ContourFinder, contour_finder
from shards_tool.film import FilmRules, Grey
from shards_tool.letterbox import letterbox, letterbox_contour
from shards_tool.pack import as_8_bits
from shards_tool.reading import read_film
from shards_tool.schema import IMAGE_SIDE
from xpt.data.crop import Windows, chest_squares, full_frames, valid_patches


def read_study(
    files: Sequence[Path], *, side: int, patch: int, crop_to: Literal["frame", "chest"]
) -> tuple[UInt8[Tensor, "V 1 H W"], Bool[Tensor, "V L"]]:
    """Films of one study, DICOM, PNG or JPEG, as squares of `side` pixels, and the patches that show film.

    `crop_to` as in `DataConfig`; the shipped network finds the chest.

    Raises ValueError where one is no chest film; of a single film, where it looks lateral.
    """
    rules = FilmRules(views="frontal" if len(files) == 1 else "chest")
    find_contour = contour_finder("network") if crop_to == "chest" else None
    images, are_valid = [], []
    for file in files:
        try:
            film = read_film(file.read_bytes(), rules)
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}") from error
        except Exception as error:  # decoders raise nearly anything on damaged input
            raise ValueError(f"{file}: cannot be read as a chest film ({error})") from error
        shown = full_frames(1) if find_contour is None else _chest_square(film.pixels_HW, find_contour)
        # The film at the scale at which what is shown has `side` pixels.
        whole = round(side / float(shown.end_B2[0, 0] - shown.start_B2[0, 0]))
        canvas_HW, box = letterbox(film.pixels_HW, whole)
        top, left = (round(float(share) * whole) for share in shown.start_B2[0])
        top, left = min(top, whole - side), min(left, whole - side)
        images.append(as_8_bits(canvas_HW[top : top + side, left : left + side]))
        boxes_V4 = np.array([box.as_tuple()])
        are_valid.append(valid_patches(shown, boxes_V4, stored_side=whole, grid=side // patch))
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.concatenate(are_valid))


def _chest_square(pixels_HW: Grey, find_contour: ContourFinder) -> Windows:
    height, width = pixels_HW.shape
    mask_hw = find_contour(pixels_HW, PurePosixPath("film")).mask_hw
    ok, encoded = cv2.imencode(".png", letterbox_contour(mask_hw, height, width, IMAGE_SIDE))
    assert ok
    return chest_squares([encoded])
