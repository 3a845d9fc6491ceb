"""A model that writes reports, without the data that it learned from."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from xpt.config import EncoderConfig
from xpt.models.language_model import LanguageModelDecoder
from xpt.models.report_decoder import Memory, PoolConnector, QueryConnector, ReportDecoder
from xpt.models.report_model import ReportModel
from xpt.report_config import ReportConfig
from xpt.tasks.generation import GenerationConfig, beam_search, sample
from xpt.text.normalise import Language
from xpt.text.tokenizer import LANGUAGE_TOKEN, SPECIAL, ReportTokenizer

TOKENIZER = "tokenizer.json"
"""In the run folder."""


@dataclass(frozen=True, eq=False)
class Writer:
    settings: ReportConfig
    tokenizer: ReportTokenizer

    def __post_init__(self) -> None:
        _ = self._generation  # settings that cannot be are refused here, not when the first report is written

    @property
    def _generation(self) -> GenerationConfig:
        settings = self.settings
        return GenerationConfig(
            longest=settings.longest,
            shortest=settings.shortest,
            beams=settings.beams,
            length_penalty=settings.length_penalty,
            no_repeat=settings.no_repeat,
        )

    def model(self, encoder: EncoderConfig) -> ReportModel:
        """With random weights, but for those of a language model."""
        settings = self.settings
        decoder = self._decoder()
        shape: dict[str, Any] = {
            "grid": encoder.grid,
            "encoder_width": encoder.width,
            "width": decoder.width,
            "views": settings.views,
        }
        if settings.connector == "pool":
            connector = PoolConnector(factor=settings.pool, **shape)
        else:
            connector = QueryConnector(queries=settings.queries, heads=settings.heads, **shape)
        return ReportModel(
            encoder, connector, decoder, drop_path=settings.drop_path, is_frozen=settings.is_frozen
        )

    def _decoder(self) -> ReportDecoder | LanguageModelDecoder:
        settings = self.settings
        if settings.language_model:
            return LanguageModelDecoder(Path(settings.language_model), special=SPECIAL)
        return ReportDecoder(
            vocabulary=len(self.tokenizer),
            longest=settings.longest,
            width=settings.width,
            depth=settings.depth,
            heads=settings.heads,
            mlp_ratio=settings.mlp_ratio,
            dropout=settings.dropout,
        )

    def reports(self, model: ReportModel, memory: Memory, language: Language) -> list[str]:
        """The best report of each study in the language."""
        language_B = torch.full((len(memory.tokens_BSD),), LANGUAGE_TOKEN[language])
        found = beam_search(model.decoder, memory, language_B.to(memory.tokens_BSD.device), self._generation)
        return [self.tokenizer.decode(ids) for ids in found]

    def draws(
        self, model: ReportModel, memory: Memory, language: Language, drawing: GenerationConfig
    ) -> list[str]:
        """A report drawn at random for each row of `memory`; of `drawing` only how it draws counts."""
        language_B = torch.full((len(memory.tokens_BSD),), LANGUAGE_TOKEN[language])
        config = dataclasses.replace(
            self._generation, temperature=drawing.temperature, top_p=drawing.top_p, seed=drawing.seed
        )
        rows = list(range(len(language_B)))
        found = sample(model.decoder, memory, language_B.to(memory.tokens_BSD.device), config, rows)
        return [self.tokenizer.decode(ids) for ids in found]


def tokenizer_of(language_model: Path) -> ReportTokenizer:
    """The model's own. Raises ValueError where there is none."""
    path = language_model / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"--report.language_model {language_model}: no tokenizer.json; wanted a folder that "
            "save_pretrained of a model and of its fast tokenizer wrote"
        )
    return ReportTokenizer(Tokenizer.from_file(str(path)))
