"""Pretrain a masked autoencoder on shards.

    deepspeed xpt/train.py --ds_config ds_configs/zero2.json --data.path SHARDS
    torchrun --nproc_per_node 8 xpt/train.py --preset vit_b_512 --data.path SHARDS
    xpt-train --preset demo --data.path SHARDS

Running the same command again goes on from the last checkpoint, with the same films, crops and masks
as if it had never stopped.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from xpt.command_line import parse
from xpt.config import Config
from xpt.data.index import ShardSet
from xpt.flops import peak_flops, work
from xpt.models.attention import attention_kernel
from xpt.models.mae import MAE
from xpt.monitoring.evidence import Evidence
from xpt.monitoring.run_page import PAGE
from xpt.training import checkpoint, distributed
from xpt.training.batches import training_batches
from xpt.training.distributed import Rank
from xpt.training.engine import gradient_norm, set_learning_rate, start_engine, zero_stage
from xpt.training.hands import Hands
from xpt.training.interval import Interval
from xpt.training.job import (
    TOLD_TO_STOP,
    Progress,
    StopSignal,
    make_run_folder,
    open_data,
    run_job,
    start_log,
)
from xpt.training.masking import region_of
from xpt.training.schedule import learning_rate, parameter_groups
from xpt.training.stability import Watch, handle_skipped
from xpt.training.stragglers import Stragglers
from xpt.training.watchdog import Watchdog, limit_start

log = logging.getLogger("xpt")


def main() -> None:
    run_job(parse, train)


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
    engine = start_engine(model, parameter_groups(model, settings.weight_decay), settings, ds, rank)
    job = checkpoint.Job(
        config=config, data_hash=train_set.manifest_hash, world_size=rank.count, zero_stage=zero_stage(ds)
    )
    checkpoints = checkpoint.Checkpoints(run, engine, job, parameters=parameters)
    images, beside = checkpoints.resume()
    last = settings.steps * settings.global_batch
    run_log = start_log(run, config, ds, rank, images)
    if rank.is_first:
        describe(config, rank, parameters, train_set, images)
    evidence = Evidence(config, rank, train_set, val_set, run_log, images)
    validates = 0 < settings.eval_images <= settings.images
    limit_start(60 * settings.hang_minutes)
    if validates and images == 0:
        evidence.collect(engine, images)

    needed = work(config).training / (rank.count * peak_flops(rank.device))  # seconds per image at the peak
    progress = Progress(settings, rank, run_log, images, needed=needed)
    interval, hands = Interval(rank.device), Hands(rank.device)
    ranks = Stragglers(rank.device, rank=rank.index, world_size=rank.count)
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
            report, slowest = progress.agree(interval, ranks, batches)
            watch.add_loss(report.loss)
            progress.write(report, slowest, images, rate, watch.counts)
            watchdog.begin(f"validation or checkpoint after {images} images")
            checkpoints.complete()
            val_loss = evidence.collect(engine, images) if validates_now else None
            # Among steps that are skipped a checkpoint would be one that it makes no sense to go back to.
            falls_due = saves or stops or report.checkpoint_due
            saves = is_last or went_back or (falls_due and not watch.in_a_row)
            if saves:
                checkpoints.begin(images, val_loss=val_loss, beside={"watch": watch.state()})
                if is_last or stops:
                    checkpoints.complete()
                progress.saved()
                evidence.refresh()
            progress.go_on(images)
            if stops and not is_last:
                log.info(
                    "stopped after %s images, as asked; the same command goes on from %s",
                    f"{images:,}",
                    "here" if saves else "the last checkpoint",
                )
                return TOLD_TO_STOP
    evidence.finish()
    if run_log is not None:
        run_log.close()
    log.info("done: %s images; look at %s", f"{images:,}", run / PAGE)
    return 0


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


if __name__ == "__main__":
    main()
