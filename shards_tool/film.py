"""The one form that every source is read into."""

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Grey = npt.NDArray[Any]
"""uint8 or uint16, height x width."""


@dataclass(frozen=True, kw_only=True)
class Film:
    pixels_HW: Grey
    """Full range of its dtype, air dark and bone bright."""
    bits_stored: int
    photometric: str
    """Photometric interpretation of the source before any inversion."""
    window: str
    """As in `SampleRecord.window`."""


def check_content(pixels_HW: Grey) -> None:
    """Raises ValueError for a picture of one grey level."""
    low = int(pixels_HW.min())
    if low == int(pixels_HW.max()):
        raise ValueError(f"no content: every pixel has the value {low}")
