"""What shows early whether a run learns: scores, reconstructions and a probe, on the same films every time.

All ranks validate and compute features. Fitting the probe is left to another process, so that nobody
waits for it (`xpt.monitoring.probes`); its result is picked up when it is there.
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from xpt.config import Config, MaskConfig
from xpt.data.index import ShardSet
from xpt.data.samples import read_samples
from xpt.evaluation import frozen_probe
from xpt.monitoring.pictures import reconstruction_sheet
from xpt.monitoring.probes import Probes
from xpt.monitoring.run_page import PAGE, write_page
from xpt.monitoring.validation import evaluate, predict
from xpt.training.batches import shared_frames, validation_batches, whole_frames
from xpt.training.distributed import Rank, gather_on_first, on_first
from xpt.training.engine import Engine
from xpt.training.telemetry import RunLog

log = logging.getLogger("xpt")
PICTURE_FILMS = 4
LONGEST_PROBE = 20 * 60.0
"""Seconds that the end of a run waits for the last probe, at most half of `train.hang_minutes`."""
STRATEGIES: tuple[str, ...] = get_args(get_type_hints(MaskConfig)["strategy"])


class Evidence:
    """One run's; all ranks must make and call it."""

    def __init__(
        self,
        config: Config,
        rank: Rank,
        train_set: ShardSet,
        val_set: ShardSet,
        run_log: RunLog | None,
        images: int,
    ) -> None:
        """Go on after `images` images."""
        self._config, self._rank, self._run_log = config, rank, run_log
        self._train_set, self._val_set = train_set, val_set
        self._run = Path(config.run_dir)
        self._probes = Probes(self._run / "evidence", run_log, images) if run_log is not None else None
        self._question = on_first(self._ask)

    def collect(self, engine: Engine, images: int) -> float:
        """Validate, draw, and start a probe of the weights after `images` images; the validation loss."""
        started = time.monotonic()
        with validation_batches(self._val_set, self._config, self._rank) as batches:
            scores = evaluate(engine, batches, self._config)
        sheets = self._reconstruct(engine)
        if self._question is not None:
            self._probe(engine, self._question, images)
        if self._run_log is not None:
            for name, sheet in sheets.items():
                self._run_log.picture(images, name, sheet)
            scores["evidence_seconds"] = time.monotonic() - started
            self._run_log.scalars(images, scores)
            log.info(
                "validation: loss %.4f, of predicting each patch's mean %.4f; training waited %.1f s",
                scores["val/loss"],
                scores["val/patch_mean"],
                scores["evidence_seconds"],
            )
        if self._probes is not None:
            self._probes.look_after()
        return scores["val/loss"]

    def refresh(self) -> None:
        """Pick up probes that are done, start one that waits, write the page; does nothing but on rank 0."""
        if self._probes is None:
            return
        self._probes.look_after()
        self._write_page()

    def _write_page(self) -> None:
        try:
            write_page(self._run)
        except (OSError, ValueError) as error:  # a page is not worth a run
            log.warning("%s was not written: %s", self._run / PAGE, error)

    def finish(self) -> None:
        """The last probe and the last page; every rank waits for rank 0."""
        on_first(self._wait)

    def _wait(self) -> None:
        if self._probes is not None:
            # The other ranks wait in a collective that gives up after `hang_minutes`.
            self._probes.wait(min(LONGEST_PROBE, 30 * self._config.train.hang_minutes))
            self._write_page()

    def _reconstruct(self, engine: Engine) -> dict[str, np.ndarray]:
        """Sheets of the first films: `reconstruction` under the run's own masks, and one per other strategy.

        Every rank makes the forward passes too, because ZeRO 3 gathers the weights for them.
        """
        config = self._config
        shown = min(config.train.micro_batch_size(self._rank.count), PICTURE_FILMS)
        with whole_frames(self._val_set, config, self._rank, batch=shown, films=PICTURE_FILMS) as batches:
            films = list(batches)
        sheets = {}
        for strategy in STRATEGIES:
            mask = dataclasses.replace(config.mask, strategy=strategy)  # pyright: ignore[reportArgumentType]
            masked = dataclasses.replace(config, mask=mask)
            made = [(batch, predict(engine, batch, masked)) for batch in films]
            if self._rank.is_first:
                name = "reconstruction" if strategy == config.mask.strategy else strategy
                sheets[name] = reconstruction_sheet(made, masked)
        return sheets

    def _ask(self) -> frozen_probe.Question | None:
        films = self._config.train.probe_films
        if not films:
            return None
        return frozen_probe.question_of(
            read_samples(self._train_set), read_samples(self._val_set), films=films
        )

    def _probe(self, engine: Engine, question: frozen_probe.Question, images: int) -> None:
        known, asked = (
            self._features(engine, shards, len(target))
            for shards, target in (
                (self._train_set, question.target_NC),
                (self._val_set, question.target_QC),
            )
        )
        if self._probes is not None and known is not None and asked is not None:
            self._probes.ask(question, known, asked, images)

    def _features(self, engine: Engine, shards: ShardSet, films: int) -> np.ndarray | None:
        """[films, F] float16 on rank 0, NaN for damaged films; each rank computes its share."""
        rows: list[Tensor] = []
        values: list[Tensor] = []
        engine.eval()
        with torch.no_grad(), shared_frames(shards, self._config, self._rank, films=films) as batches:
            for batch in batches:
                value_BF = engine(
                    batch.image_BCHW,
                    batch.chest_BL,
                    batch.is_valid_BL,
                    batch.position_B,
                    0,
                    features_only=True,
                )
                counts_B = batch.weight_B > 0
                rows.append(batch.position_B[counts_B].cpu())
                values.append(value_BF[counts_B].half().cpu())
        engine.train()
        shares = gather_on_first((torch.cat(rows).numpy(), torch.cat(values).numpy()))
        if not shares:
            return None
        whole = np.full((films, shares[0][1].shape[1]), np.nan, np.float16)
        for row, value in shares:
            whole[row] = value
        return whole
