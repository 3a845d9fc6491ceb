"""Settings of the data path, each with its unit, checked where it is declared."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """How films become batches. Raises ValueError that names the field."""

    side: int = 1280
    """Side of the square image that the model sees, in pixels."""
    patch: int = 16
    """Side of a patch in pixels."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest share of the square frame's area that a crop keeps. 0.5 to 1 suits chest
    X-rays better than the 0.2 to 1 of natural images (arXiv 2210.12843)."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    window_shards: int = 32
    """Shards whose samples are mixed with each other at a time: more mix better, fewer read more locally."""
    threads: int = 4
    """Threads that decode."""
    readers: int = 4
    """Threads that read files."""
    prefetch: int = 2
    """Micro-batches being decoded ahead of the one in use; as many again are being read."""
    max_bad_share: float = 0.01
    """Share of films read that may be replaced as damaged before training stops; the first 1,000 films
    are judged as if 1,000 had been read."""
    max_bad_run: int = 16
    """Damaged films in a row for one place in a batch before training stops."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        checks = (
            ("patch", self.patch >= 1, "at least 1 pixel"),
            ("side", self.side >= 1 and self.side % self.patch == 0, f"a multiple of patch = {self.patch}"),
            ("crop_scale", 0 < low <= high <= 1, "0 < smallest <= largest <= 1"),
            ("flip", 0 <= self.flip <= 1, "0 to 1"),
            ("window_shards", self.window_shards >= 1, "at least 1 shard"),
            ("threads", self.threads >= 1, "at least 1"),
            ("readers", self.readers >= 1, "at least 1"),
            ("prefetch", self.prefetch >= 1, "at least 1 micro-batch"),
            ("max_bad_share", 0 <= self.max_bad_share <= 1, "0 to 1"),
            ("max_bad_run", self.max_bad_run >= 1, "at least 1"),
        )
        for name, is_right, wanted in checks:
            if not is_right:
                raise ValueError(f"data.{name}: got {getattr(self, name)}, wanted {wanted}")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // self.patch

    @property
    def augments(self) -> bool:
        """False where every training window is the full frame, not mirrored."""
        return self.crop_scale != (1, 1) or self.flip > 0
