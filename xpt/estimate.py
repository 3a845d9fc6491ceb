"""What a run will take, before it starts: memory, time, storage; and what speaks against it."""

import dataclasses
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xpt.config import Config
from xpt.files import METRICS, read_json_lines
from xpt.flops import GPUS, Work, known_gpu, peak_flops, work
from xpt.memory import BYTES, FLOAT32, GB, MOST_LIVE, Memory, pretraining_memory
from xpt.models.mae import MAE

RESERVE = {True: 3 * GB, False: 1 * GB}
"""Bytes per rank that no estimate covers, on a GPU (context, NCCL, allocator) and on a CPU (libraries)."""
SIGNAL_SECONDS = 300
"""Notice that slurm/*.sh ask for before the time limit."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one rank has."""

    name: str
    is_gpu: bool
    flops: float
    """At its peak, FLOP/s."""
    bytes: float
    """Of memory."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What is known of where a run reads and writes."""

    film_bytes: float
    film_source: str
    read_bytes_per_second: float | None = None
    """Measured on this node."""
    write_bytes_per_second: float
    hash_bytes_per_second: float
    free_bytes: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    parameters: int
    memory: Memory
    largest_micro_batch: int
    """0: not even one image fits."""
    work: Work
    images_per_second: float
    rate_source: str
    days: float
    bandwidth: float
    """Bytes/s that the whole job reads."""
    checkpoint_bytes: int
    checkpoint_seconds: float
    """From the step to a complete checkpoint, as on a signal; else training goes on during the checksums."""


def device_of(name: str, gigabytes: float, ranks: int) -> Device:
    """The named one of NVIDIA's, or with an empty name what is in this machine.

    Raises ValueError for a name that is not in the table.
    """
    if name:
        known = known_gpu(name)
        if known is None:
            raise ValueError(f"--device {name}: not known. There are: {', '.join(GPUS)}.")
        size = (gigabytes or GPUS[known].gigabytes) * GB
        return Device(name=known, is_gpu=True, flops=GPUS[known].tflops * 1e12, bytes=size)
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        size = gigabytes * GB or float(torch.cuda.get_device_properties(device).total_memory)
        return Device(
            name=torch.cuda.get_device_name(device), is_gpu=True, flops=peak_flops(device), bytes=size
        )
    size = gigabytes * GB or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks
    return Device(name="CPU", is_gpu=False, flops=peak_flops(torch.device("cpu")), bytes=size)


def parameters_of(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in MAE(config).parameters())


def largest_micro_batch(
    config: Config, parameters: int, zero: dict[str, Any], ranks: int, device: Device
) -> int:
    """Images; the largest divisor of a rank's part of the batch whose step fits; 0 where none does."""
    per_rank = config.train.global_batch // ranks
    fitting = 0
    for images in (m for m in range(1, per_rank + 1) if per_rank % m == 0):
        train = dataclasses.replace(config.train, micro_batch=images)
        try:
            needed = pretraining_memory(
                dataclasses.replace(config, train=train),
                parameters=parameters,
                zero=zero,
                ranks=ranks,
                on_gpu=device.is_gpu,
            )
        except ValueError:  # activation_gb that so many images cannot keep to
            break
        if needed.total > room_of(device):
            break
        fitting = images
    return fitting


def room_of(device: Device) -> float:
    """Bytes of the device that a step may take."""
    return device.bytes - RESERVE[device.is_gpu]


def measured_mfu(run: Path) -> float:
    """Median of the model FLOPs utilisation in a run's metrics; raises ValueError where it has none."""
    if not (run / METRICS).is_file():
        raise ValueError(f"--measured {run}: no {METRICS} in it; wanted a run folder of xpt-train")
    values = [row["mfu"] for row in read_json_lines(run / METRICS) if "mfu" in row]
    if not values:
        raise ValueError(f"--measured {run}: its metrics have no `mfu`; wanted a run that logged training")
    return statistics.median(values)


def estimate(
    config: Config,
    zero: dict[str, Any],
    ranks: int,
    device: Device,
    storage: Storage,
    *,
    rate: float,
    mfu: float,
    mfu_source: str,
) -> Estimate:
    """Of a `resolved` configuration.

    Args:
        rate: images/s of the whole job, where it is known; 0: from `mfu`.

    Raises:
        ValueError: where the ranks do not divide the batch.
    """
    parameters = parameters_of(config)
    of_image = work(config)
    source = "stated"
    if not rate:
        rate = mfu * ranks * device.flops / of_image.training
        source = f"{mfu:.0%} of {ranks} x {device.flops / 1e12:.3g} TFLOP/s, {mfu_source}"
    size = checkpoint_bytes(config, parameters)
    return Estimate(
        parameters=parameters,
        memory=pretraining_memory(
            config, parameters=parameters, zero=zero, ranks=ranks, on_gpu=device.is_gpu
        ),
        largest_micro_batch=largest_micro_batch(config, parameters, zero, ranks, device),
        work=of_image,
        images_per_second=rate,
        rate_source=source,
        days=config.train.images / rate / 86_400,
        bandwidth=rate * storage.film_bytes,
        checkpoint_bytes=size,
        checkpoint_seconds=size / storage.write_bytes_per_second
        + _largest_share(config, parameters, zero["stage"], ranks) / storage.hash_bytes_per_second,
    )


def checkpoint_bytes(config: Config, parameters: int) -> int:
    """Weights in the precision of training, float32 master weights and AdamW's two moments."""
    return (BYTES[config.train.precision] + 3 * FLOAT32) * parameters


def _largest_share(config: Config, parameters: int, stage: int, ranks: int) -> float:
    """Bytes of a checkpoint that the first rank writes: under ZeRO 1 and 2 all of the weights, too."""
    alone = 0 if stage == 3 else BYTES[config.train.precision] * parameters
    return alone + (checkpoint_bytes(config, parameters) - alone) / ranks


def warnings_about(
    found: Estimate, config: Config, zero: dict[str, Any], ranks: int, device: Device, storage: Storage
) -> Iterator[str]:
    """What speaks against the run as it is set up, each with its remedy."""
    train = config.train
    micro = train.micro_batch_size(ranks)
    room = room_of(device)
    if found.memory.total > room:
        yield (
            f"A step needs {found.memory.total / GB:.1f} GB per rank, {device.name} has room for "
            f"{max(0, room) / GB:.1f} GB. {_way_to_fit(found, config, zero, ranks, device)}"
        )
    elif train.accumulation(ranks) > 1 and found.largest_micro_batch >= 2 * micro:
        yield (
            f"{micro} images per forward pass leave memory unused: "
            f"--train.micro_batch {found.largest_micro_batch} fits and needs fewer, larger steps."
        )
    if zero["stage"] == 3 and found.parameters <= zero.get("stage3_max_live_parameters", MOST_LIVE):
        yield (
            "ZeRO 3 keeps a model of this size gathered during the step (stage3_max_live_parameters), so it "
            "saves little and communicates more: use ds_configs/zero2.json, or lower that field."
        )
    if not device.is_gpu:
        yield (
            "There is no GPU here. --device H100 --ranks 8 asks about a machine that has some; on CPUs train "
            "the preset demo only."
        )
    if storage.read_bytes_per_second is not None and storage.read_bytes_per_second < found.bandwidth:
        yield (
            f"The job reads {found.bandwidth / 1e6:.3g} MB/s, this node alone was measured at "
            f"{storage.read_bytes_per_second / 1e6:.3g} MB/s: spread it over more nodes, copy the shards to "
            "local disks, or raise --data.readers."
        )
    needed = (train.keep_checkpoints + 2) * found.checkpoint_bytes
    if needed > storage.free_bytes:
        yield (
            f"{train.keep_checkpoints} checkpoints, the best one and the one being written take "
            f"{needed / GB:.1f} GB, {storage.free_bytes / GB:.1f} GB are free where the run writes: give "
            "another --run_dir, or lower --train.keep_checkpoints."
        )
    if found.checkpoint_seconds > SIGNAL_SECONDS:
        yield (
            f"A checkpoint takes {found.checkpoint_seconds:.0f} s, Slurm's notice is {SIGNAL_SECONDS} s: "
            f"submit with sbatch --signal=B:USR2@{2 * round(found.checkpoint_seconds)}."
        )
    between = min(60 * train.checkpoint_minutes, train.checkpoint_images / found.images_per_second)
    if found.checkpoint_seconds > 0.1 * between:
        yield (
            f"Checkpoints, {found.checkpoint_seconds:.3g} s each, take more than a tenth of the time "
            f"({between:.3g} s lie between two): raise --train.checkpoint_images or "
            "--train.checkpoint_minutes."
        )
    if found.days > 90:
        yield (
            f"The run takes {found.days:,.0f} days: use more ranks, --model.decoder cross, or fewer "
            "--train.images."
        )


def _way_to_fit(found: Estimate, config: Config, zero: dict[str, Any], ranks: int, device: Device) -> str:
    """The first of the usual ways that fits."""
    if found.largest_micro_batch:
        return f"Set --train.micro_batch {found.largest_micro_batch}."
    lean, less = (
        dataclasses.replace(
            config, model=dataclasses.replace(config.model, activation_checkpointing=what, activation_gb=0.0)
        )
        for what in ("elementwise", "blocks")
    )
    blocks = "--model.activation_checkpointing blocks"
    ways = (
        ("--model.activation_checkpointing elementwise", lean, zero),
        (blocks, less, zero),
        ("--ds_config ds_configs/zero2.json", config, zero | {"stage": 2}),
        (f"{blocks} --ds_config ds_configs/zero2.json", less, zero | {"stage": 2}),
        (
            f"{blocks} --ds_config ds_configs/zero3_offload.json",
            less,
            zero | {"stage": 3} | {f"offload_{what}": {"device": "cpu"} for what in ("optimizer", "param")},
        ),
    )
    for flags, settings, other in ways:
        if images := largest_micro_batch(settings, found.parameters, other, ranks, device):
            return f"Set {flags} --train.micro_batch {images}."
    return "No setting of this model fits: use more ranks, or a device with more memory."
