"""The one form that every source is read into, and the rules by which a film is wanted or not."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Grey = npt.NDArray[Any]
"""uint8 or uint16, height x width."""

Views = Literal["frontal", "chest", "all"]
Frames = Literal["exclude", "first", "middle"]
Sideways = Literal["flag", "exclude"]
Writing = Literal["flag", "mask"]


class ExcludedError(ValueError):
    """A rule leaves this film out; nothing is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class FilmRules:
    """Which films are wanted; see `BuildSettings`."""

    views: Views = "frontal"
    frames: Frames = "exclude"
    sideways: Sideways = "flag"
    writing: Writing = "flag"


@dataclass(frozen=True, kw_only=True)
class Film:
    pixels_HW: Grey
    """Full range of its dtype, air dark and bone bright."""
    bits_stored: int
    photometric: str
    """Photometric interpretation of the source before any inversion."""
    window: str
    """As in `SampleRecord.window`."""
    repairs: tuple[str, ...] = ()
    """As in `SampleRecord.repairs`."""
    orientation: str = ""
    """As in `SampleRecord.orientation`."""
    burned_in: bool = False
    """Whether the source says that there is writing in it."""


MASK_VALUES = 8
"""A picture of at most so many grey values is drawn, not exposed."""


def check_content(pixels_HW: Grey) -> None:
    """Whether there is a film in the picture.

    Raises:
        ExcludedError: at most `MASK_VALUES` grey values: a mask of the lungs, say, that lies among the films.
        ValueError: one grey value.
    """
    few = pixels_HW[::64, ::64]
    if few.size and len(np.unique(few)) > MASK_VALUES:  # nearly every film, without looking at every pixel
        return
    values = np.unique(pixels_HW)
    if len(values) == 1:
        raise ValueError(f"no content: every pixel has the value {values[0]}")
    if len(values) <= MASK_VALUES:
        raise ExcludedError(f"a mask or a drawing, no film: it has {len(values)} grey values")
