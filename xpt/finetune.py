"""Fine-tune a pretrained encoder on the labels or the reports of shards.

    deepspeed xpt/finetune.py --task recognition --init RUN --data.path SHARDS
    deepspeed xpt/finetune.py --task report --languages en zh --init RUN --data.path SHARDS
    xpt-finetune --preset demo --init demo/run --data.path demo/shards

The order of films, checkpoints, resuming and logs are those of pretraining. The weights with the best
validation are kept in `RUN/best.pt`; `xpt-evaluate RUN` tests them.
"""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from xpt import memory
from xpt.config import as_json
from xpt.files import write_atomically
from xpt.finetune_config import FinetuneConfig, parse
from xpt.models.classifier import Classifier
from xpt.models.init import load_encoder, read_weights
from xpt.models.report_model import ReportModel
from xpt.tasks.best import BEST
from xpt.tasks.choice import task_of
from xpt.tasks.frozen import fit_frozen
from xpt.tasks.recognition import Recognition
from xpt.tasks.task import Task
from xpt.training import checkpoint, distributed
from xpt.training.batches import training_batches, validation_batches
from xpt.training.distributed import Rank
from xpt.training.ema import Ema
from xpt.training.engine import (
    checkpoint_weights,
    gradient_norm,
    readable_module,
    set_learning_rate,
    start_engine,
    whole_weights,
    zero_stage,
)
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
from xpt.training.saved import folders, newest
from xpt.training.schedule import layer_groups, learning_rate
from xpt.training.stragglers import Stragglers
from xpt.training.telemetry import RunLog, write_provenance
from xpt.training.watchdog import Watchdog, lift_limit

log = logging.getLogger("xpt")


def main() -> None:
    run_job(parse, finetune)


def finetune(config: FinetuneConfig, ds: dict[str, Any], rank: Rank) -> int:
    """The whole run, as seen by one rank; returns the exit status of the process."""
    settings, run = config.train, Path(config.run_dir)
    accumulation = settings.accumulation(rank.count)
    train_set, val_set = open_data(config)
    distributed.on_first(lambda: make_run_folder(run))
    task = task_of(config, train_set, val_set)

    torch.manual_seed(settings.seed)
    model = task.model().to(rank.device)
    if isinstance(task, Recognition) and isinstance(model, Classifier) and not config.recognition.trains:
        return probe(model, task, config, ds, rank)
    stop = StopSignal()
    if not distributed.on_first(lambda: folders(run)):  # a checkpoint of this run has all weights
        initialize(model, config)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if rank.is_first:
        describe(config, ds, rank, task, parameters, trained)
    groups = layer_groups(
        model,
        settings.weight_decay,
        layer_decay=config.tuning.layer_decay,
        depth=config.model.depth,
    )
    ema = ema_of(model, config, ds)
    engine = start_engine(model, groups, settings, ds, rank)
    job = checkpoint.Job(
        config=config,
        data_hash=train_set.manifest_hash,
        world_size=rank.count,
        zero_stage=zero_stage(ds),
        tokenizer=task.saved.get("tokenizer", ""),
    )
    checkpoints = checkpoint.Checkpoints(run, engine, job, parameters=parameters)
    images, beside = checkpoints.resume()
    best = beside.get("best", -1.0)
    if ema and images:
        ema.load(beside["ema"])
    last = settings.steps * settings.global_batch
    run_log = start_log(run, config, ds, rank, images)
    progress = Progress(settings, rank, run_log, images)
    interval, hands = Interval(rank.device), Hands(rank.device)
    ranks = Stragglers(rank.device, rank=rank.index, world_size=rank.count)
    train = task.train
    with (
        training_batches(train.shards, config, rank, start=images, groups=train.groups) as batches,
        Watchdog(run, rank.index, seconds=60 * settings.hang_minutes) as watchdog,
    ):
        while images < last:
            step = images // settings.global_batch
            watchdog.begin(f"step {step}")
            rate = learning_rate(images, settings)
            set_learning_rate(engine, rate)
            for micro_step in range(accumulation):
                watchdog.phase = "waiting for films"
                batch = next(batches)
                watchdog.phase = "computing"
                seed_draws(settings.seed, images, micro_step, rank.index)
                with ranks:
                    loss, loss_B = task.loss(engine, batch)
                engine.backward(loss)
                engine.step()  # moves the weights at the last micro-batch only
                interval.add_losses(step, batch.keys, loss_B)
            interval.add_norm(step, gradient_norm(engine))
            step, images = step + 1, images + settings.global_batch
            if ema:
                ema.update(step)

            is_last, stops = images >= last, hands.show(stop.asked)
            validates_now = is_last or step % settings.every(settings.eval_images) == 0
            saves = is_last or step % settings.every(settings.checkpoint_images) == 0
            if not (stops or validates_now or saves or step % settings.every(settings.log_images) == 0):
                continue
            report, slowest = progress.agree(interval, ranks, batches)
            progress.write(report, slowest, images, rate)
            watchdog.begin(f"validation or checkpoint after {images} images")
            checkpoints.complete()
            if validates_now:
                best = validate(engine, task, config, rank, run_log, images, best, ema)
            if saves or stops or report.checkpoint_due:
                checkpoints.begin(images, beside={"best": best, "ema": ema.state() if ema else []})
                if is_last or stops:
                    checkpoints.complete()
                progress.saved()
            progress.go_on(images)
            if stops and not is_last:
                log.info(
                    "stopped after %s images, as asked; the same command goes on from here", f"{images:,}"
                )
                return TOLD_TO_STOP
    if run_log is not None:
        run_log.close()
    log.info("done: %s %.4f at best; test it with: xpt-evaluate %s", task.score, best, run)
    return 0


def probe(
    model: Classifier, task: Recognition, config: FinetuneConfig, ds: dict[str, Any], rank: Rank
) -> int:
    """A run without training steps. A signal ends it at once: there is nothing to go on from."""
    run = Path(config.run_dir)
    if folders(run) or (run / BEST).exists():
        raise ValueError(
            f"--run_dir {run}: holds a run with training steps, and xpt-evaluate would read that one. Give "
            f"the protocol {config.recognition.protocol} a folder of its own."
        )
    if rank.is_first:
        write_provenance(run, config, ds, 0)
    initialize(model, config)
    lift_limit()  # of the start: one pass over all films comes now, and nothing that waits for ever
    return fit_frozen(model, task, config, rank)


def initialize(model: Classifier | ReportModel, config: FinetuneConfig) -> None:
    """The encoder's weights from `--init`, which the first rank reads for all; the model is on its device.

    Raises ValueError, on all ranks, where they are not of this architecture.
    """
    if not config.init:
        return
    source = Path(config.init)
    distributed.on_first(lambda: load_encoder(model.encoder, read_init(source, config), str(source)))
    for tensor in model.encoder.state_dict().values():
        dist.broadcast(tensor, src=0)
    log.info("encoder from %s", source)


def read_init(source: Path, config: FinetuneConfig) -> dict[str, torch.Tensor]:
    """The weights in a run's newest intact checkpoint, or in a file."""
    if source.is_file():
        return read_weights(source)
    if not source.is_dir():
        raise ValueError(f"--init {source}: no such run folder or file")
    found = newest(source, set_aside=False)
    if found is None:
        raise ValueError(f"--init {source}: no checkpoint in it; wanted a run folder of xpt-train")
    theirs, ours = found.description["config"]["model"], as_json(config)["model"]
    names = ("patch", "width", "depth", "heads", "mlp_ratio")
    different = [f"--model.{n} {theirs[n]} (now {ours[n]})" for n in names if theirs[n] != ours[n]]
    if different:
        raise ValueError(
            f"--init {source}: a model of another architecture. Set {', '.join(different)}, or the "
            "--preset of that run."
        )
    return checkpoint_weights(found.folder)


def ema_of(model: nn.Module, config: FinetuneConfig, ds: dict[str, Any]) -> Ema | None:
    """Raises ValueError under ZeRO 3, which leaves no rank a whole parameter to take the mean of."""
    if not config.tuning.ema:
        return None
    if zero_stage(ds) == 3:
        raise ValueError(
            f"{config.task}.ema: needs whole parameters, and ZeRO 3 divides them. "
            f"Set --ds_config ds_configs/zero2.json or --{config.task}.ema 0."
        )
    return Ema(model, config.tuning.ema)


def seed_draws(seed: int, images: int, micro_step: int, rank: int) -> None:
    """Drop path and mixup of one forward pass: a function of where in the run it stands, so that a run
    which goes on draws the same."""
    state = np.random.SeedSequence((seed, images, micro_step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> 1))


def validate(
    engine: Any,  # noqa: ANN401  DeepSpeed's engine
    task: Task,
    config: FinetuneConfig,
    rank: Rank,
    run_log: RunLog | None,
    images: int,
    best: float,
    ema: Ema | None,
) -> float:
    """Score the weights (or their running mean), keep them where they are the best so far; the new best."""
    val = task.val
    with ema.in_place() if ema else contextlib.nullcontext():
        module = readable_module(engine, task.model)
        with validation_batches(val.shards, config, rank, groups=val.groups) as batches:
            scores = task.validate(module, batches)
        if scores[task.score] > best:
            weights = whole_weights(engine)
            if rank.is_first:
                save_best(Path(config.run_dir) / BEST, weights, task, config, images, scores[task.score])
    if run_log is not None:
        run_log.scalars(images, scores)
        log.info(
            "validation: %s %.4f (best so far %.4f), loss %.4f",
            task.score,
            scores[task.score],
            max(best, scores[task.score]),
            scores["val/loss"],
        )
    return max(best, scores[task.score])


def save_best(
    path: Path,
    weights: dict[str, torch.Tensor],
    task: Task,
    config: FinetuneConfig,
    images: int,
    score: float,
) -> None:
    content = {
        "model": weights,
        "config": as_json(config),
        **task.saved,
        "images": images,
        task.score: score,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def describe(
    config: FinetuneConfig,
    ds: dict[str, Any],
    rank: Rank,
    task: Task,
    parameters: int,
    trained: int,
) -> None:
    settings = config.train
    log.info("%s: %s", config.task, task.line())
    log.info(
        "%.1f M parameters, %.1f M of them trained; %d px, %d tokens; per step %d images, forward passes per "
        "rank %d, ranks %d on %s, %s",
        parameters / 1e6,
        trained / 1e6,
        config.model.side,
        config.model.tokens,
        settings.global_batch,
        settings.accumulation(rank.count),
        rank.count,
        rank.device.type,
        settings.precision,
    )
    estimate = memory.training_memory(
        config.model,
        tokens=config.model.tokens + 1,
        parameters=parameters,
        trained=trained,
        micro_batch=settings.micro_batch_size(rank.count),
        precision=settings.precision,
        zero=ds["zero_optimization"],
        ranks=rank.count,
        accumulates=settings.accumulation(rank.count) > 1,
        on_gpu=rank.device.type == "cuda",
        is_frozen=config.tuning.is_frozen,
    )
    log.info("%s", estimate.line())


if __name__ == "__main__":
    main()
