"""The one form that every source is read into, and the rules by which a film is wanted or not."""

from dataclasses import dataclass
from typing import Any, Literal

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


def check_content(pixels_HW: Grey) -> None:
    """Raises ValueError for a picture of one grey level."""
    few = pixels_HW[::64, ::64]
    if few.min() < few.max():  # nearly every film, without looking at every pixel
        return
    low = int(pixels_HW.min())
    if low == int(pixels_HW.max()):
        raise ValueError(f"no content: every pixel has the value {low}")
