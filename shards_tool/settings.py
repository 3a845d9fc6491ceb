"""What one asks of a build, and what one gets."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from shards_tool.schema import CONTOUR_SCALE, IMAGE_SIDE


class BuildStoppedError(RuntimeError):
    """The build cannot go on now (disk full, source gone); the same command goes on later."""


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What decides the content of a data set, besides its input and its key."""

    side: int = IMAGE_SIDE
    """Side of the square image in pixels."""
    format: Literal["jpeg", "png16"] = "jpeg"
    """png16 is 16-bit and lossless."""
    quality: int = 95
    """Of the JPEG, 1 to 100."""
    shard_size: int = 512
    """Planned samples per shard; one worker makes one shard."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of patients in train, val and test."""
    salt: str = ""
    """Another salt gives another division into splits."""
    contour: str = "rect"
    """rect, or masks:DIR (one PNG per film; the rectangle for films without one)."""

    def __post_init__(self) -> None:
        if not 64 <= self.side <= 8192 or self.side % CONTOUR_SCALE:
            raise ValueError(f"--side {self.side}: wanted a multiple of {CONTOUR_SCALE} from 64 to 8192")
        if self.format not in ("jpeg", "png16"):
            raise ValueError(f"--format {self.format}: wanted jpeg or png16")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality}: wanted 1 to 100")
        if self.shard_size < 1:
            raise ValueError(f"--shard-size {self.shard_size}: wanted at least 1")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"--fractions {self.fractions}: wanted three numbers >= 0 that add up to 1")

    def recorded(self) -> dict[str, object]:
        """For the manifest: without the mask folder's place."""
        method = self.contour.partition(":")[0]
        return dataclasses.asdict(self) | {"fractions": list(self.fractions), "contour": method}


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build made. `inputs` is always the sum of `samples`, `quarantined` and `ignored`."""

    inputs: int
    samples: int
    quarantined: int
    ignored: int
    """Files that are plainly no image, e.g. tables."""
    splits: dict[str, int]
    """Samples in each split."""
    contours: dict[str, int]
    """Samples by the way their contour was found."""
