"""What shows early whether a run learns: scores, reconstructions and a probe, on the same films every time.

All ranks validate and compute features. Fitting the probe is left to another process, so that nobody
waits for it (`xpt.evaluation.frozen_probe`); its result is picked up when it is there.
"""

import dataclasses
import json
import logging
import subprocess
import time
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from xpt.config import Config, MaskConfig
from xpt.data.index import ShardSet
from xpt.data.samples import read_samples
from xpt.evaluation import frozen_probe
from xpt.evaluation.html import span
from xpt.monitoring.pictures import reconstruction_sheet
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
        """Go on after `images` images: what a stopped run gathered past its last checkpoint is dropped."""
        self._config, self._rank, self._run_log = config, rank, run_log
        self._train_set, self._val_set = train_set, val_set
        self._run = Path(config.run_dir)
        self._folder = self._run / "evidence"
        self._running: subprocess.Popen[bytes] | None = None
        self._question = on_first(self._ask)
        if run_log is not None:
            self._folder.mkdir(exist_ok=True)
            forget_after(self._folder, images)

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
            self._look_after_probes(self._run_log)
        return scores["val/loss"]

    def refresh(self) -> None:
        """Pick up probes that are done, start one that waits, write the page; does nothing but on rank 0."""
        if self._run_log is None:
            return
        self._look_after_probes(self._run_log)
        try:
            write_page(self._run)
        except (OSError, ValueError) as error:  # a page is not worth a run
            log.warning("%s was not written: %s", self._run / PAGE, error)

    def finish(self) -> None:
        """The last probe and the last page; every rank waits for rank 0."""
        on_first(self._wait)

    def _wait(self) -> None:
        # The other ranks wait in a collective that gives up after `hang_minutes`.
        end = time.monotonic() + min(LONGEST_PROBE, 30 * self._config.train.hang_minutes)
        self.refresh()
        while self._running is not None and time.monotonic() < end:
            time.sleep(0.1)
            if self._running.poll() is not None:
                self.refresh()
        if self._running is not None:
            self._running.terminate()
            log.warning("the last probe was not waited for any longer; its features stay in %s", self._folder)

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
        if known is not None and asked is not None:
            frozen_probe.write_features(self._folder / f"features-{images:012d}.npz", question, known, asked)

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

    def _look_after_probes(self, run_log: RunLog) -> None:
        """Publish, start the next; what goes wrong with a probe is no reason to lose the run."""
        try:
            self._publish_and_start(run_log)
        except (OSError, ValueError) as error:
            log.warning("a probe cannot be started or read: %s", error)

    def _publish_and_start(self, run_log: RunLog) -> None:
        """One process at a time, oldest features first. Features go when their result is published."""
        if self._running is not None and self._running.poll() is None:
            return
        has_ended, self._running = self._running is not None, None
        for features in sorted(self._folder.glob("features-*.npz")):
            result = self._folder / f"probe-{_images(features):012d}.json"
            if result.exists():
                _publish(run_log, _images(features), json.loads(result.read_text()))
            elif has_ended:
                log.warning("a probe failed; its last words are in %s", result.with_suffix(".log"))
            else:
                self._running = frozen_probe.start(features, result)
                return
            features.unlink()
            has_ended = False


def forget_after(folder: Path, images: int) -> None:
    """Drop what was gathered after `images` images, and what a killed process left half-written."""
    for path in folder.iterdir():
        if path.name.startswith(".") or images == 0 or _images(path) > images:
            path.unlink()


def _publish(run_log: RunLog, images: int, found: dict[str, Any]) -> None:
    mean = found["mean"]
    run_log.scalars(
        images,
        {
            f"probe/{method}_{part}": mean[method][part]
            for method in ("logistic", "knn")
            for part in ("value", "low", "high")
            if mean[method][part] is not None
        },
    )
    log.info(
        "probe after %s images: mean AUROC of %d findings %s, by nearest films %s",
        f"{images:,}",
        len(found["findings"]),
        span(mean["logistic"]),
        span(mean["knn"]),
    )


def _images(path: Path) -> int:
    """Of a file named NAME-IMAGES.*."""
    return int(path.stem.rpartition("-")[2])
