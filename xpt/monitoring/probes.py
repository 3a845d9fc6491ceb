"""The probes of a run: each in a process of its own, one at a time, the oldest features first.

RUN/evidence has `features-IMAGES.npz` until the probe of those weights has been published, then
`probe-IMAGES.json`, and `probe-IMAGES.log` with what the process said.
"""

import json
import logging
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from xpt.evaluation import frozen_probe
from xpt.evaluation.frozen_probe import Question
from xpt.evaluation.html import span
from xpt.training.telemetry import RunLog

log = logging.getLogger("xpt")


class Probes:
    """What goes wrong with a probe is no reason to lose the run: it is said, and the next has its turn."""

    def __init__(self, folder: Path, run_log: RunLog, images: int) -> None:
        """Go on after `images` images: what a stopped run gathered past its last checkpoint is dropped."""
        self._folder, self._run_log = folder, run_log
        self._running: subprocess.Popen[bytes] | None = None
        folder.mkdir(exist_ok=True)
        forget_after(folder, images)

    def ask(self, question: Question, known_ND: np.ndarray, asked_QD: np.ndarray, images: int) -> None:
        """A probe of the weights after `images` images, in its turn; features of damaged films are NaN."""
        frozen_probe.write_features(
            self._folder / f"features-{images:012d}.npz", question, known_ND, asked_QD
        )

    def look_after(self) -> None:
        """Publish what is done and start the next."""
        try:
            self._publish_and_start()
        except OSError as error:  # passes by, perhaps: the next look tries again
            log.warning("probes cannot be started or read now: %s", error)

    def _publish_and_start(self) -> None:
        if self._running is not None and self._running.poll() is None:
            return
        has_ended, self._running = self._running is not None, None
        for features in sorted(self._folder.glob("features-*.npz")):
            result = self._folder / f"probe-{_images(features):012d}.json"
            if result.exists():
                try:
                    _publish(self._run_log, _images(features), json.loads(result.read_text()))
                except (ValueError, LookupError, TypeError) as error:
                    log.warning("%s: this probe is left out: %r", result, error)
            elif has_ended:
                log.warning("a probe failed; its last words are in %s", result.with_suffix(".log"))
            else:
                self._running = frozen_probe.start(features, result)
                return
            features.unlink()
            has_ended = False

    def wait(self, seconds: float) -> None:
        """Until all are published, or for so long."""
        end = time.monotonic() + seconds
        self.look_after()
        while self._running is not None and time.monotonic() < end:
            time.sleep(0.1)
            self.look_after()
        if self._running is not None:
            self._running.kill()
            self._running.wait()
            self._running = None
            log.warning("the last probe was not waited for any longer; its features stay in %s", self._folder)


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
