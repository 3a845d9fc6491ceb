"""Pretrain a masked autoencoder on shards.

    deepspeed xpt/train.py --ds_config ds_configs/zero2.json --data.path SHARDS
    torchrun --nproc_per_node 8 xpt/train.py --preset vit_b_512 --data.path SHARDS
    xpt-train --preset demo --data.path SHARDS

Running the same command again goes on from the last checkpoint, with the same films, crops and masks
as if it had never stopped.
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

from xpt.command_line import parse
from xpt.config import Config, RunConfig
from xpt.data.index import ShardSet, open_shards
from xpt.data.reader import DataError
from xpt.files import write_atomically
from xpt.flops import peak_flops, work
from xpt.models.attention import attention_kernel
from xpt.models.mae import MAE
from xpt.monitoring.evidence import Evidence
from xpt.monitoring.run_page import PAGE
from xpt.training import checkpoint, distributed
from xpt.training.batches import training_batches
from xpt.training.distributed import Rank
from xpt.training.engine import (
    gradient_norm,
    read_ds_config,
    resolved,
    set_learning_rate,
    start_engine,
    zero_stage,
)
from xpt.training.hands import Hands
from xpt.training.interval import Interval, NonFiniteError, Report
from xpt.training.masking import region_of
from xpt.training.schedule import learning_rate, parameter_groups
from xpt.training.stability import Watch, handle_skipped
from xpt.training.stragglers import Slowest, Stragglers
from xpt.training.telemetry import Pace, RunLog, set_up_logging, write_provenance
from xpt.training.watchdog import Watchdog, limit_start

log = logging.getLogger("xpt")
CRASHED = 1
REFUSED = 2
"""Exit status where starting again would end the same way; the message says what to mend."""
TOLD_TO_STOP = 75
"""Exit status of a run that stopped on a signal, with a checkpoint, and can go on (EX_TEMPFAIL)."""
R = TypeVar("R", bound=RunConfig)


def main() -> None:
    run_job(parse, train)


def run_job(parse: Callable[[list[str]], R], job: Callable[[R, dict[str, Any], Rank], int]) -> None:
    """One rank's process, from the command line to its exit status."""
    set_up_logging(int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))))
    try:
        config = parse(sys.argv[1:])
        ds = read_ds_config(config.ds_config)
        rank = distributed.start(config.train.hang_minutes)
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


def train(config: Config, ds: dict[str, Any], rank: Rank) -> int:
    """The whole run, as seen by one rank; returns the exit status of the process."""
    settings, run = config.train, Path(config.run_dir)
    accumulation = settings.accumulation(rank.count)
    train_set, val_set = open_data(config)
    distributed.on_first(lambda: make_run_folder(run))
    stop = StopSignal()

    torch.manual_seed(settings.seed)
    model = MAE(config)
    parameters = sum(p.numel() for p in model.parameters())
    limit_start(60 * settings.hang_minutes)
    engine = start_engine(model, parameter_groups(model, settings.weight_decay), settings, ds, rank)
    job = checkpoint.Job(
        config=config, data_hash=train_set.manifest_hash, world_size=rank.count, zero_stage=zero_stage(ds)
    )
    checkpoints = checkpoint.Checkpoints(run, engine, job, parameters=parameters)
    images, beside = checkpoints.resume()
    last = settings.steps * settings.global_batch
    run_log = None
    if rank.is_first:
        write_provenance(run, config, ds, images)
        run_log = RunLog(run, images)
        describe(config, rank, parameters, train_set, images)
    evidence = Evidence(config, rank, train_set, val_set, run_log, images)
    validates = 0 < settings.eval_images <= settings.images
    limit_start(60 * settings.hang_minutes)
    if validates and images == 0:
        evidence.collect(engine, images)

    needed = work(config).training / (rank.count * peak_flops(rank.device))  # seconds per image at the peak
    interval, pace = Interval(rank.device), Pace(images, last)
    saved_at, waited = time.monotonic(), 0.0
    hands, ranks = Hands(rank.device), Stragglers(rank.device, rank=rank.index, world_size=rank.count)
    watch = Watch(settings.max_skipped, beside.get("watch"))
    with (
        training_batches(train_set, config, rank, start=images) as batches,
        Watchdog(run, rank.index, seconds=60 * settings.hang_minutes) as watchdog,
    ):
        while images < last:
            step = images // settings.global_batch
            watchdog.begin(f"step {step}")
            rate = learning_rate(images, settings)
            set_learning_rate(engine, rate)
            for _ in range(accumulation):
                watchdog.phase = "waiting for films"
                batch = next(batches)
                watchdog.phase = "computing"
                with ranks:
                    prediction = engine(
                        batch.image_BCHW,
                        region_of(batch, config),
                        batch.is_valid_BL,
                        batch.position_B,
                        settings.seed,
                    )
                # A loss that is not finite makes the gradient so, and the step is skipped.
                engine.backward(prediction.loss * (1 + 0 * prediction.loss.detach()))
                engine.step()  # moves the weights at the last micro-batch only
                interval.add_losses(step, batch.keys, prediction.loss_B)
            norm = gradient_norm(engine)
            interval.add_norm(step, norm)
            watch.add(step, norm)
            step, images = step + 1, images + settings.global_batch

            is_last, stops = images >= last, hands.show(stop.asked)
            validates_now = validates and (is_last or step % settings.every(settings.eval_images) == 0)
            saves = is_last or step % settings.every(settings.checkpoint_images) == 0
            pauses = stops or validates_now or saves or step % settings.every(settings.log_images) == 0
            went_back = handle_skipped(watch, interval, checkpoints, run_log, settle=pauses)
            if not (pauses or went_back):
                continue
            report = interval.close(
                wait_seconds=batches.wait_seconds - waited,
                replaced=batches.replaced,
                asked_to_stop=stops,
                checkpoint_due=time.monotonic() - saved_at > 60 * settings.checkpoint_minutes,
                world_size=rank.count,
            )
            slowest = ranks.close(wait_seconds=batches.wait_seconds - waited, retries=batches.retries)
            waited = batches.wait_seconds
            watch.add_loss(report.loss)
            if run_log is not None:
                report_progress(run_log, pace, report, slowest, images, last, rate, needed, watch.counts)
            watchdog.begin(f"validation or checkpoint after {images} images")
            checkpoints.complete()
            val_loss = evidence.collect(engine, images) if validates_now else None
            # Among steps that are skipped a checkpoint would be one that it makes no sense to go back to.
            saves = (saves or report.checkpoint_due) and not watch.in_a_row
            if saves or went_back or is_last or report.asked_to_stop:
                checkpoints.begin(images, val_loss=val_loss, beside={"watch": watch.state()})
                if is_last or report.asked_to_stop:
                    checkpoints.complete()
                saved_at = time.monotonic()
                evidence.refresh()
            pace.start_interval(images)
            if report.asked_to_stop and not is_last:
                log.info(
                    "stopped after %s images, as asked; the same command goes on from here", f"{images:,}"
                )
                return TOLD_TO_STOP
    evidence.finish()
    if run_log is not None:
        run_log.close()
    log.info("done: %s images; look at %s", f"{images:,}", run / PAGE)
    return 0


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
    except OSError as error:
        raise ValueError(
            f"--run_dir {run}: cannot write there: {error.strerror}. Give another folder."
        ) from error


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


def describe(config: Config, rank: Rank, parameters: int, train_set: ShardSet, images: int) -> None:
    settings = config.train
    log.info(
        "%s: %.1f M parameters, %d px, %d tokens, %d visible, %d predicted (%s decoder)",
        config.preset,
        parameters / 1e6,
        config.model.side,
        config.model.tokens,
        config.kept,
        config.predicted,
        config.model.decoder,
    )
    log.info(
        "ranks %d on %s, %s; per step %d images, forward passes per rank %d; attention %s",
        rank.count,
        rank.device.type,
        settings.precision,
        settings.global_batch,
        settings.accumulation(rank.count),
        attention_in(config, rank.device),
    )
    log.info(
        "%s training films; %s of %s images done",
        f"{len(train_set):,}",
        f"{images:,}",
        f"{settings.images:,}",
    )


def attention_in(config: Config, device: torch.device) -> str:
    """Kernels of encoder and decoder."""
    model = config.model
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    heads = (model.width // model.heads, model.decoder_width // model.decoder_heads)
    return ", ".join(
        f"{attention_kernel(model.attention, width, dtype, device)} (heads of {width})"
        for width in dict.fromkeys(heads)
    )


def report_progress(
    run_log: RunLog,
    pace: Pace,
    report: Report,
    slowest: Slowest,
    images: int,
    last: int,
    rate: float,
    needed: float = math.nan,
    counts: dict[str, int] | None = None,
) -> None:
    """`needed`: seconds that the devices at their peak would take for an image, where that was counted;
    `counts`: what else there is to count."""
    per_second, left = pace.measure(images)
    is_counted = not math.isnan(needed)
    scalars = {
        "loss": report.loss,
        "lr": rate,
        "grad_norm": report.grad_norm,
        "images_per_second": per_second,
        **({"mfu": needed * per_second} if is_counted else {}),
        "data_wait_seconds": report.wait_seconds,
        "peak_memory_gb": peak_memory_gb(),
        "replaced": report.replaced,
        **(counts or {}),
        **slowest.scalars(),
    }
    run_log.scalars(images, scalars)
    log.info(
        "%s/%s images  %3.0f%%  loss %.4f  lr %.2e  grad %.2f  %.3g images/s%s  waited %.1f s%s  %s left",
        f"{images:,}",
        f"{last:,}",
        100 * images / last,
        report.loss,
        rate,
        report.grad_norm,
        per_second,
        f"  MFU {needed * per_second:.0%}" if is_counted else "",
        report.wait_seconds,
        slowest.line(),
        left,
    )


def peak_memory_gb() -> float:
    """Largest memory so far: allocated on the GPU, or resident in this process, in GB (10^9 bytes)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
