"""Settings of report generation: what is learned from which texts, and how reports are written."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from xpt.config import check
from xpt.text.normalise import Language
from xpt.text.sections import Section


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Reports of studies, and the decoder that writes them."""

    languages: Annotated[tuple[Language, ...], tyro.conf.arg(prefix_name=False)] = ("en", "zh")
    """What is learned; a study is one input, with a text in each of these that it has."""
    section: Section = "both"
    """Which part of the reports, by their headings (`xpt/text/sections.py`)."""
    views: int = 2
    """Films of a study at most, frontal ones first."""
    unusable: Literal["refuse", "leave_out"] = "refuse"
    """What to do with a study that has no frontal film, no text in the languages, or one without end."""
    vocabulary: int = 4096
    """Tokens at most, trained on the reports of the training split."""
    longest: int = 256
    """Tokens of a report, in training and when written. Training reads the beginning of longer ones."""
    connector: Literal["pool", "queries"] = "pool"
    """From patches to what the decoder looks at: means of squares of patches, or learned queries."""
    pool: int = 4
    """Patches along a side of a square."""
    queries: int = 256
    """Learned queries of a study."""
    width: int = 512
    """Of the decoder, as are the next four."""
    depth: int = 6
    heads: int = 8
    mlp_ratio: float = 4.0
    dropout: float = 0.1
    language_model: str = ""
    """Folder of a Hugging Face causal language model that takes the decoder's place, with its own tokenizer;
    needs `pip install -e '.[language-model]'`."""
    is_frozen: bool = False
    """The encoder stays as it was loaded."""
    layer_decay: float = 0.75
    """Learning rate of each encoder block over that of the block above it."""
    drop_path: float = 0.1
    """Probability of leaving out the last encoder block, falling to 0 for the first."""
    ema: float = 0.0
    """Decay per step of the running mean of the weights, which is then what is validated; 0: none."""
    select: Literal["finding_f1", "cider"] = "finding_f1"
    """What the best weights are chosen by on validation: micro F1 of the findings that the texts assert, or
    CIDEr; the mean over the languages."""
    beams: int = 3
    """Of the search that writes reports, as are the next three."""
    length_penalty: float = 1.0
    shortest: int = 0
    no_repeat: int = 0

    def __post_init__(self) -> None:
        named = len(set(self.languages)) == len(self.languages) >= 1
        check(named, "languages", self.languages, "one or more languages, each once")
        for name in ("views", "pool", "queries", "width", "depth", "heads", "beams"):
            check(getattr(self, name) >= 1, f"report.{name}", getattr(self, name), "at least 1")
        for name in ("dropout", "drop_path", "ema"):
            check(0 <= getattr(self, name) < 1, f"report.{name}", getattr(self, name), "a number in [0, 1)")
        check(0 < self.layer_decay <= 1, "report.layer_decay", self.layer_decay, "a number in (0, 1]")
        check(self.longest >= 2, "report.longest", self.longest, "at least 2")
        check(
            self.width % self.heads == 0,
            "report.width",
            self.width,
            f"a multiple of {self.heads} (report.heads)",
        )
