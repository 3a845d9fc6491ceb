"""What pretraining and fine-tuning share around their loops.

How a rank's process starts, is asked to stop and ends; the data and the run folder; and what is agreed on and
written down at each line of metrics.
"""

import faulthandler
import logging
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from xpt.config import RunConfig, TrainConfig
from xpt.data.index import ShardSet, open_shards
from xpt.data.loader import BatchLoader
from xpt.data.reader import DataError
from xpt.files import remove_torn, write_atomically
from xpt.training import distributed
from xpt.training.distributed import Rank
from xpt.training.engine import read_ds_config, resolved
from xpt.training.interval import Interval, NonFiniteError, Report
from xpt.training.stragglers import Slowest, Stragglers
from xpt.training.telemetry import Pace, RunLog, set_up_logging, write_provenance
from xpt.training.watchdog import limit_start

log = logging.getLogger("xpt")
CRASHED = 1
REFUSED = 2
"""Exit status where starting again would end the same way; the message says what to mend."""
TOLD_TO_STOP = 75
"""Exit status of a run that stopped on a signal and can go on (EX_TEMPFAIL)."""
R = TypeVar("R", bound=RunConfig)


def run_job(parse: Callable[[list[str]], R], job: Callable[[R, dict[str, Any], Rank], int]) -> None:
    """One rank's process, from the command line to its exit status."""
    set_up_logging(int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))))
    try:
        config = parse(sys.argv[1:])
        ds = read_ds_config(config.ds_config)
        rank = distributed.start(config.train.hang_minutes)
        limit_start(60 * config.train.hang_minutes)
        status = job(resolved(config, rank.device), ds, rank)
    except (ValueError, OSError, NonFiniteError, DataError) as error:
        # The message says what to do; a traceback would only hide it.
        log.error("%s", error)
        leave_failed(REFUSED)
    except Exception:
        log.exception("unexpected error")
        leave_failed(CRASHED)
    distributed.stop()
    sys.exit(status)


def leave_failed(status: int) -> NoReturn:
    """End this process at once: with others about, leaving their group politely would wait for them."""
    faulthandler.cancel_dump_traceback_later()
    logging.shutdown()
    if dist.is_initialized() and dist.get_world_size() > 1:
        os._exit(status)
    distributed.stop()
    sys.exit(status)


class StopSignal:
    """Whether this process was asked to stop; the ranks tell each other at every step (`Hands`).

    SIGTERM, SIGINT, SIGUSR1 or SIGUSR2 asks. After that a SIGINT ends the process at once; the others change
    nothing, because Slurm sends SIGTERM twice to a job that it preempts without notice.
    """

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def open_data(config: RunConfig) -> tuple[ShardSet, ShardSet]:
    """The training and validation splits; rank 0 looks at every shard's size before the others begin.

    Raises ValueError that says what is wrong with the data set, or how to make one.
    """
    if not config.data.path:
        raise ValueError(
            "no shards given: set --data.path or XPT_DATA to a folder made by "
            "`xpt-shards build SRC... --out DIR` (`xpt-shards phantom DIR` makes an archive to try it on)."
        )
    root = Path(config.data.path)

    def check() -> None:
        for split in ("train", "val"):
            open_shards(root, split)

    distributed.on_first(check)
    return open_shards(root, "train", check_files=False), open_shards(root, "val", check_files=False)


def make_run_folder(run: Path) -> None:
    """Raises ValueError where it cannot be made or written to."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / ".writable", b"")
        (run / ".writable").unlink()
        for folder in (run, run / "evidence", run / "pictures"):
            remove_torn(folder)
    except OSError as error:
        raise ValueError(
            f"--run_dir {run}: cannot write there: {error.strerror}. Give another folder."
        ) from error


def start_log(run: Path, config: RunConfig, ds: dict[str, Any], rank: Rank, images: int) -> RunLog | None:
    """The run's files that grow, and beside them where it comes from; None on all ranks but the first."""
    if not rank.is_first:
        return None
    write_provenance(run, config, ds, images)
    return RunLog(run, images)


class Progress:
    """How far a run has come since its last line of metrics, its last checkpoint, and in all."""

    def __init__(
        self,
        settings: TrainConfig,
        rank: Rank,
        run_log: RunLog | None,
        images: int,
        *,
        needed: float = math.nan,
    ) -> None:
        """After `images` images. `needed`: seconds that the devices at their peak would take for an image,
        where that was counted."""
        self._rank, self._run_log, self._needed = rank, run_log, needed
        self._last = settings.steps * settings.global_batch
        self._pace = Pace(images, self._last)
        self._longest_unsaved = 60 * settings.checkpoint_minutes
        self._saved_at, self._waited = time.monotonic(), 0.0

    def agree(self, interval: Interval, ranks: Stragglers, batches: BatchLoader) -> tuple[Report, Slowest]:
        """End the interval; all ranks must call it after the same step. Raises as `Interval.close` does."""
        waited, self._waited = batches.wait_seconds - self._waited, batches.wait_seconds
        report = interval.close(
            wait_seconds=waited,
            replaced=batches.replaced,
            checkpoint_due=time.monotonic() - self._saved_at > self._longest_unsaved,
            world_size=self._rank.count,
        )
        return report, ranks.close(wait_seconds=waited, retries=batches.retries)

    def write(
        self,
        report: Report,
        slowest: Slowest,
        images: int,
        rate: float,
        counts: dict[str, int] | None = None,
    ) -> None:
        """A line of metrics and one of the log, on the first rank; `counts`: what else there is to count."""
        if self._run_log is None:
            return
        per_second, left = self._pace.measure(images)
        is_counted = not math.isnan(self._needed)
        scalars = {
            "loss": report.loss,
            "lr": rate,
            "grad_norm": report.grad_norm,
            "images_per_second": per_second,
            **({"mfu": self._needed * per_second} if is_counted else {}),
            "data_wait_seconds": report.wait_seconds,
            "peak_memory_gb": peak_memory_gb(),
            "replaced": report.replaced,
            **(counts or {}),
            **slowest.scalars(),
        }
        self._run_log.scalars(images, scalars)
        log.info(
            "%s/%s images  %3.0f%%  loss %.4f  lr %.2e  grad %.2f  %.3g images/s%s  waited %.1f s%s  %s left",
            f"{images:,}",
            f"{self._last:,}",
            100 * images / self._last,
            report.loss,
            rate,
            report.grad_norm,
            per_second,
            f"  MFU {self._needed * per_second:.0%}" if is_counted else "",
            report.wait_seconds,
            slowest.line(),
            left,
        )

    def saved(self) -> None:
        """A checkpoint has been begun."""
        self._saved_at = time.monotonic()

    def go_on(self, images: int) -> None:
        """Training begins again: what came since `agree` is not counted as its time."""
        self._pace.start_interval(images)


def peak_memory_gb() -> float:
    """Largest memory so far: allocated on the GPU, or resident in this process, in GB (10^9 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
