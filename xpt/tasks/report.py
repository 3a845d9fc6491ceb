"""Report generation: texts, model, loss and validation of a fine-tuning run.

Shape suffixes: B studies, V films of a study, F = B x V films, M films that are there, L patches, R reports
(each study has one per language), T tokens, C vocabulary, N studies of a split.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from xpt.data.batch import Batch
from xpt.data.index import ShardSet, filled_splits, open_shards
from xpt.data.labels import check_disjoint
from xpt.finetune_config import FinetuneConfig
from xpt.models.report_model import ReportModel
from xpt.report_config import ReportConfig
from xpt.tasks.studies import Studies, read_studies
from xpt.tasks.writer import TOKENIZER, Writer, tokenizer_of
from xpt.text.findings import asserted_findings
from xpt.text.normalise import Language
from xpt.text.scores import finding_scores, word_scores
from xpt.text.sections import without_headings
from xpt.text.tokenizer import PAD, ReportTokenizer
from xpt.text.words import Words, chinese_characters, english_words
from xpt.training.distributed import gather_objects, on_first

WORDS: dict[Language, Words] = {"en": english_words, "zh": chinese_characters}


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyInput:
    """The studies of a batch as the model takes them, without their texts."""

    rows: list[int]
    """Place of each study in its split."""
    films: tuple[Tensor, Tensor, Tensor, int]
    """image_FCHW, is_valid_FL, there_M and B."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """Generated reports of one language, in the order of the split's studies."""

    rows: list[int]
    """Place of each study in its split."""
    references: list[str]
    candidates: list[str]
    patients: list[str]


class ReportWriting:
    """The task of one run. Raises ValueError where the reports do not fit the configuration."""

    def __init__(self, config: FinetuneConfig, train_set: ShardSet, val_set: ShardSet) -> None:
        self.settings = settings = config.report
        self.model_config, self.run = config.model, Path(config.run_dir)
        if config.data.flip:
            raise ValueError("data.flip: a mirrored film contradicts its report. Set --data.flip 0.")
        self.train, self.val = read_studies(train_set, settings), read_studies(val_set, settings)
        check_disjoint({"train": self.train.patients, "val": self.val.patients})
        self.score = f"val/{settings.select}"
        _check_validation(self.val, settings, config.train.eval_films)
        on_first(self._make_tokenizer)
        self.writer = Writer(settings, ReportTokenizer.load(self.run / TOKENIZER))
        self.tokenizer = self.writer.tokenizer

    def _make_tokenizer(self) -> None:
        """`RUN/tokenizer.json`, unless the run has begun already."""
        path = self.run / TOKENIZER
        if path.exists():
            return
        if self.settings.language_model:
            tokenizer = tokenizer_of(Path(self.settings.language_model))
        else:
            texts = (text for texts in self.train.texts for text in texts.values())
            tokenizer = ReportTokenizer.train(texts, self.settings.vocabulary)
        tokenizer.save(path)

    @property
    def saved(self) -> dict[str, Any]:
        """What a model of this task must be used with again."""
        return {"tokenizer": self.tokenizer.fingerprint}

    def line(self) -> str:
        """What is learned, for the log."""
        texts = [text for texts in self.train.texts for text in texts.items()]
        cut = sum(len(self.tokenizer.encode(t, name)) - 1 > self.settings.longest for name, t in texts)
        return (
            f"{len(self.train):,} studies of {len(set(self.train.patients)):,} patients, {len(texts):,} "
            f"texts ({self.settings.section}; {', '.join(self.settings.languages)}), {len(self.tokenizer):,} "
            f"tokens; {cut:,} texts are longer than report.longest and end there in training"
        )

    def evaluated(self) -> list[Studies]:
        """Validation, and the test split where the data set has one.

        Raises ValueError where a patient of it is in another split.
        """
        root = self.val.shards.root
        if "test" not in filled_splits(root):
            return [self.val]
        test = read_studies(open_shards(root, "test"), self.settings)
        check_disjoint({"train": self.train.patients, "val": self.val.patients, "test": test.patients})
        return [self.val, test]

    def model(self) -> ReportModel:
        return self.writer.model(self.model_config)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, "F"]]:
        """Mean over the studies, and for each film its study's own, detached.

        A study's loss is the mean over its texts, a text's the mean over its tokens.
        """
        inputs = study_input(self.train, batch)
        study_R, ids_RT = self._texts(self.train, inputs)
        logit_RTC = model(*inputs.films[:3], study_R, ids_RT[:, :-1], inputs.films[3])
        loss_B = study_losses(logit_RTC, ids_RT[:, 1:], study_R, len(inputs.rows))
        return loss_B.mean(), loss_B.detach().repeat_interleave(len(batch.keys) // len(inputs.rows))

    def _texts(self, split: Studies, inputs: StudyInput) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R T"]]:
        """Which study of the batch each text is of, and its tokens, filled up with PAD."""
        texts = [
            (place, self.tokenizer.encode(text, language)[: self.settings.longest + 1])
            for place, row in enumerate(inputs.rows)
            for language, text in split.texts[row].items()
        ]
        longest = max(len(ids) for _, ids in texts)
        ids_RT = torch.tensor([ids + [PAD] * (longest - len(ids)) for _, ids in texts])
        study_R = torch.tensor([place for place, _ in texts])
        device = inputs.films[0].device
        return study_R.to(device, non_blocking=True), ids_RT.to(device, non_blocking=True)

    def validate(self, model: ReportModel, batches: Iterable[Batch]) -> dict[str, float]:
        """Loss, and how close the generated reports are to the references: by findings, and by words."""
        losses, written = self.write(model, batches, self.val)
        scores = {"val/loss": float(np.mean(losses))}
        for language, found in written.items():
            said = finding_scores(found.references, found.candidates, found.patients, language)
            scores[f"val/finding_f1/{language}"] = said["micro"].f1.value
            wanted, got = (
                [without_headings(text) for text in texts] for texts in (found.references, found.candidates)
            )
            words = word_scores(wanted, got, found.patients, WORDS[language], meteor=False)
            scores[f"val/cider/{language}"] = words.cider.value
        for name in ("finding_f1", "cider"):
            scores[f"val/{name}"] = float(np.mean([scores[f"val/{name}/{language}"] for language in written]))
        return scores

    @torch.no_grad()
    def write(
        self, model: ReportModel, batches: Iterable[Batch], split: Studies
    ) -> tuple[list[float], dict[Language, Written]]:
        """Losses and generated reports of the studies in `batches` on all ranks, in the split's order.

        Every rank needs the same number of batches. Studies whose first film is damaged are left out.
        """
        model.eval()
        losses: dict[int, float] = {}
        reports: dict[tuple[int, Language], str] = {}
        for batch in batches:
            inputs = study_input(split, batch)
            memory = model.remember(*inputs.films)
            study_R, ids_RT = self._texts(split, inputs)
            logit_RTC = model.decoder(ids_RT[:, :-1], memory.of(study_R))
            loss_B = study_losses(logit_RTC, ids_RT[:, 1:], study_R, len(inputs.rows)).tolist()
            counted = counted_studies(split, batch)
            losses |= {inputs.rows[place]: loss_B[place] for place in counted}
            for language in self.settings.languages:
                wanted = [place for place in counted if language in split.texts[inputs.rows[place]]]
                if wanted:
                    texts = self.writer.reports(model, memory.of(wanted), language)
                    for place, text in zip(wanted, texts, strict=True):
                        reports[inputs.rows[place], language] = text
        model.train()
        for theirs, written in gather_objects((losses, reports)):
            losses |= theirs
            reports |= written
        by_language: dict[Language, Written] = {}
        for language in self.settings.languages:
            rows = sorted(row for row, name in reports if name == language)
            by_language[language] = Written(
                rows=rows,
                references=[split.texts[row][language] for row in rows],
                candidates=[reports[row, language] for row in rows],
                patients=[split.patients[row] for row in rows],
            )
        return list(losses.values()), by_language


def study_input(split: Studies, batch: Batch) -> StudyInput:
    """The batch by studies. What stands in for a study's first film brings its own study's texts; what stands
    in for another film is not looked at."""
    views = split.groups.rows_NV.shape[1]
    rows = [split.row_of[key] for key in batch.keys[::views]]
    there = [
        film
        for film, key in enumerate(batch.keys)
        if film % views == 0
        or (split.row_of[key] == rows[film // views] and key != batch.keys[film - film % views])
    ]
    device = batch.image_BCHW.device
    there_M = torch.tensor(there).to(device, non_blocking=True)
    return StudyInput(rows=rows, films=(batch.image_BCHW, batch.is_valid_BL, there_M, len(rows)))


def counted_studies(split: Studies, batch: Batch) -> list[int]:
    """Places in the batch of the studies whose first film counts (`Batch.counted`); waits for the device."""
    views = split.groups.rows_NV.shape[1]
    return [film // views for film in batch.counted if film % views == 0]


def study_losses(
    logit_RTC: Float[Tensor, "R T C"],
    next_RT: Int64[Tensor, "R T"],
    study_R: Int64[Tensor, "R"],
    studies: int,
) -> Float[Tensor, "B"]:
    """Mean over each study's texts of the mean cross-entropy over their tokens, padding left out."""
    loss_RT = F.cross_entropy(logit_RTC.float().flatten(0, 1), next_RT.flatten(), reduction="none")
    is_text_RT = next_RT != PAD
    loss_R = (loss_RT.view_as(next_RT) * is_text_RT).sum(1) / is_text_RT.sum(1)
    sum_B, count_B = (
        torch.zeros(studies, device=x_R.device).index_add(0, study_R, x_R)
        for x_R in (loss_R, torch.ones_like(loss_R))
    )
    return sum_B / count_B


def _check_validation(val: Studies, settings: ReportConfig, studies: int) -> None:
    """Raises ValueError where the first `studies` have no reference in a language, or none that asserts a
    finding though models are chosen by findings."""
    for language in settings.languages:
        rows = [row for row in val.with_text(language) if row < studies]
        if not rows:
            raise ValueError(
                f"split val: none of the first {studies} studies has a report in {language}. Raise "
                "--train.eval_films, or leave the language out of --languages."
            )
        if settings.select == "finding_f1" and not any(
            asserted_findings(val.texts[row][language], language) for row in rows
        ):
            raise ValueError(
                f"split val: none of the first {len(rows)} reports in {language} asserts a finding, so no "
                "model can be chosen by findings. Set --report.select cider, raise --train.eval_films, or "
                "give more studies."
            )
