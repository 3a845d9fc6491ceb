"""A single film as a model gets it, read as the shard tool reads it.

Shape suffixes: V films of a study, L patches.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from shards_tool.film import FilmRules
from shards_tool.letterbox import letterbox
from shards_tool.pack import as_8_bits
from shards_tool.reading import read_film
from xpt.data.crop import full_frames, valid_patches


def read_study(
    files: Sequence[Path], *, side: int, patch: int
) -> tuple[UInt8[Tensor, "V 1 H W"], Bool[Tensor, "V L"]]:
    """Films of one study, DICOM, PNG or JPEG, as squares of `side` pixels, and the patches that show film.

    Raises ValueError where one is no chest film; of a single film, where it looks lateral.
    """
    rules = FilmRules(views="frontal" if len(files) == 1 else "chest")
    images, boxes = [], []
    for file in files:
        try:
            film = read_film(file.read_bytes(), rules)
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}") from error
        except Exception as error:  # decoders raise nearly anything on damaged input
            raise ValueError(f"{file}: cannot be read as a chest film ({error})") from error
        canvas_HW, box = letterbox(film.pixels_HW, side)
        images.append(as_8_bits(canvas_HW))
        boxes.append(box.as_tuple())
    is_valid_VL = valid_patches(
        full_frames(len(files)), np.array(boxes), stored_side=side, grid=side // patch
    )
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(is_valid_VL)
