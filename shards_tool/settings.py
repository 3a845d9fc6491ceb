"""What one asks of a build, and what one gets."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from shards_tool.film import FilmRules, Frames, Sideways, Views, Writing
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
    splits: Literal["drawn", "published"] = "drawn"
    """drawn divides the patients by the fractions; published takes the splits that the tables name, and train
    for films that they do not place. A film whose patient is also in a stricter split (test before val before
    train) is left out."""
    contour: str = "network"
    """network finds the chest of each film; onnx:FILE does it with another segmenter (its signature is in
    `docs/shards.md`); masks:DIR takes a PNG per film, and the rectangle for films without one; rect; none."""
    views: Views = "frontal"
    """frontal keeps PA and AP films of the chest, chest adds lateral and oblique ones, all keeps every
    projection radiograph."""
    frames: Frames = "exclude"
    """Of DICOM files with several frames: leave them out, or take the first or the middle one."""
    sideways: Sideways = "flag"
    """Films that lie on a side or upside down: say so in the record, or leave them out."""
    writing: Writing = "flag"
    """Writing in the picture near its borders: say so in the record, or paint over it."""
    reports: Literal["scrub", "keep"] = "scrub"
    """Replace what looks like names, dates and numbers in report texts, or keep the texts as they are."""

    duplicates: Literal["link", "drop", "keep"] = "link"
    """link drops films of the same pixels and keeps nearly equal ones together in one split; drop drops
    those too; keep drops only files of the same bytes, and keeps all the others together."""

    def __post_init__(self) -> None:
        if not 64 <= self.side <= 8192 or self.side % CONTOUR_SCALE:
            raise ValueError(f"--side {self.side}: wanted a multiple of {CONTOUR_SCALE} from 64 to 8192")
        if self.format not in ("jpeg", "png16"):
            raise ValueError(f"--format {self.format}: wanted jpeg or png16")
        if self.splits not in ("drawn", "published"):
            raise ValueError(f"--splits {self.splits}: wanted drawn or published")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality}: wanted 1 to 100")
        if self.shard_size < 1:
            raise ValueError(f"--shard-size {self.shard_size}: wanted at least 1")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"--fractions {self.fractions}: wanted three numbers >= 0 that add up to 1")

    def film_rules(self) -> FilmRules:
        return FilmRules(views=self.views, frames=self.frames, sideways=self.sideways, writing=self.writing)

    def recorded(self) -> dict[str, object]:
        """For the manifest: without the mask folder's or the model's place. Which masks and which model they
        were is recorded by their hashes, with each film and with the build."""
        method = self.contour.partition(":")[0]
        recorded = dataclasses.asdict(self) | {"fractions": list(self.fractions), "contour": method}
        if self.splits == "drawn":  # so that data sets from before there was a choice are recognised
            del recorded["splits"]
        return recorded


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build made. `inputs` is always the sum of the four counts below it."""

    inputs: int
    samples: int
    duplicates: int
    """Films that are in already."""
    excluded: int
    """What a rule leaves out: laterals, films of a test set, files that are plainly no image."""
    quarantined: int
    """Files that cannot be used."""
    splits: dict[str, int]
    """Samples in each split."""
    contours: dict[str, int]
    """Samples by the way their contour was found."""


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """What one share of a job array has read."""

    inputs: int
    films: int
    """Different ones; some may turn out to be damaged or duplicates."""
