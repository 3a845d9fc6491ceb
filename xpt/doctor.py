"""Look at the machine, the data set and the plan before a run, and say what will be wrong.

    xpt-doctor --preset vit_l_1280 --ds_config ds_configs/zero2.json --data.path SHARDS
    xpt-doctor --preset vit_l_1280 --ds_config ds_configs/zero2.json --device H100 --ranks 64
    xpt-doctor --measured RUN ...       # at the utilisation that a run reached instead of an assumed one

It takes every flag of xpt-train, so that the command of a run becomes a question by its name alone. Exit
status 1 where something that the run needs is broken or does not fit, 2 for flags that cannot be.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xpt.command_line import parse_run
from xpt.config import PRESETS, Config, check
from xpt.data.index import filled_splits, open_shards
from xpt.data.reader import DataError
from xpt.data.trial import ReadRate, read_rate
from xpt.estimate import (
    Device,
    Estimate,
    Storage,
    device_of,
    estimate,
    measured_mfu,
    room_of,
    warnings_about,
)
from xpt.files import write_atomically
from xpt.memory import GB
from xpt.training.engine import read_ds_config, resolved
from xpt.training.environment import Check, check_environment, faults
from xpt.training.telemetry import set_up_logging

READ_SECONDS = 3.0
ASSUMED_MFU = 0.35
FILM_BYTES_PER_PIXEL = 0.25
"""Of a JPEG of quality 95, where no shards are there to ask."""
TRIAL_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class Question(Config):
    """A pretraining run, and what is asked about it."""

    ranks: int = 0
    """GPUs of the whole job; 0: those of this machine, or one CPU process."""
    device: str = ""
    """One of NVIDIA's GPUs by name (H100, A100, ...); empty: what this machine has."""
    device_gb: float = 0.0
    """Memory of each device, GB (10^9 bytes); 0: what it has."""
    images_per_second: float = 0.0
    """Of the whole job, where it is known; 0: from the utilisation."""
    mfu: float = ASSUMED_MFU
    """Share of the devices' peak FLOP/s that training reaches."""
    measured: str = ""
    """A run folder of xpt-train whose median utilisation is taken instead of `mfu`."""
    environment: bool = True
    """Also try the tools of this machine, half a minute."""
    json: str = ""
    """Also write everything to this file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.ranks >= 0, "ranks", self.ranks, "0 or more")
        check(0 < self.mfu <= 1, "mfu", self.mfu, "a share in (0, 1]")
        check(self.images_per_second >= 0, "images_per_second", self.images_per_second, "0 or more")


def parse(arguments: list[str]) -> Question:
    """Flags of xpt-train and of the doctor; raises as `parse_run` does."""

    def question(preset: Config) -> Question:
        return Question(**{f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)})

    presets = {name: (lambda make=make: question(make())) for name, make in PRESETS.items()}
    asked = parse_run(arguments, presets, default="vit_l_1280")
    return asked if asked.run_dir else dataclasses.replace(asked, run_dir=f"runs/{asked.preset}")


def main() -> None:
    set_up_logging(0)
    try:
        sys.exit(examine(parse(sys.argv[1:]), Console(highlight=False)))
    except (ValueError, OSError, DataError) as error:
        Console(stderr=True).print(f"xpt-doctor: {escape(str(error))}", soft_wrap=True)
        sys.exit(2)


def examine(asked: Question, console: Console) -> int:
    """Print the whole report; returns the exit status.

    Raises ValueError where the flags cannot be.
    """
    zero = read_ds_config(asked.ds_config)["zero_optimization"]
    ranks = asked.ranks or max(1, torch.cuda.device_count())
    device = device_of(asked.device, asked.device_gb, ranks)
    config = resolved(asked, torch.device("cuda" if device.is_gpu else "cpu"))
    mfu, source = config.mfu, "assumed" if config.mfu == ASSUMED_MFU else "stated"
    if config.measured:
        mfu, source = measured_mfu(Path(config.measured)), f"measured in {config.measured}"
    config.train.accumulation(ranks)  # refuses ranks that do not divide the batch before anything is tried

    checks = check_environment() if config.environment else []
    if checks:
        print_checks(checks, console)
    problems = [f"{each.name} is {each.state}: {each.said}. {each.remedy}" for each in faults(checks)]
    rate, shard_problems = look_at_shards(config, console)
    storage = storage_of(config, rate)
    found = estimate(
        config, zero, ranks, device, storage, rate=config.images_per_second, mfu=mfu, mfu_source=source
    )
    print_estimate(found, config, zero, ranks, device, storage, console)
    fits = found.memory.total <= room_of(device) and found.largest_micro_batch > 0
    warnings = [*problems, *shard_problems, *warnings_about(found, config, zero, ranks, device, storage)]
    console.print("\n[bold]What to mend or to know[/]" if warnings else "\nNothing speaks against it.")
    for warning in warnings:
        console.print(f"- {escape(warning)}", soft_wrap=True)
    if config.json:
        report = {"checks": [asdict(each) for each in checks], "estimate": asdict(found)}
        report |= {"device": asdict(device), "storage": asdict(storage), "warnings": warnings}
        write_atomically(Path(config.json), json.dumps(report, indent=2) + "\n")
    return 1 if problems or shard_problems or not fits else 0


def print_checks(checks: list[Check], console: Console) -> None:
    table = Table("tool", "", "version", "tried", title="This machine", title_justify="left")
    marks = {"works": "works", "broken": "[red]broken[/]", "absent": "[red]absent[/]", "unused": "not used"}
    for each in checks:
        table.add_row(each.name, marks[each.state], each.version, escape(each.said))
    console.print(table)


def look_at_shards(config: Config, console: Console) -> tuple[ReadRate | None, list[str]]:
    """(how fast films come from the shards, None without shards; what is wrong with them)."""
    console.print("\n[bold]Data set[/]")
    if not config.data.path:
        console.print("none given: set --data.path or XPT_DATA")
        return None, []
    root = Path(config.data.path)
    try:
        splits = {split: open_shards(root, split) for split in filled_splits(root)}
        for split in ("train", "val"):
            if split not in splits:
                open_shards(root, split)  # raises, and says what to do
    except ValueError as error:
        console.print(escape(str(error)), soft_wrap=True)
        return None, [str(error)]
    for split, shards in splits.items():
        size = shards.shard_bytes.sum() / GB
        console.print(f"{split}: {len(shards):,} films in {len(shards.shard_names):,} shards, {size:.2f} GB")
    train, problems = splits["train"], []
    console.print(f"manifest {train.manifest_hash[:12]}, {train.side} pixels; index and sizes agree with it")
    rate = read_rate(train, threads=config.data.readers, seconds=READ_SECONDS)
    console.print(
        f"read {rate.films} films at random with {config.data.readers} threads: "
        f"{rate.films_per_second:,.0f} films/s, {rate.bytes_per_second / 1e6:,.0f} MB/s"
    )
    if rate.damaged:
        problems.append(
            f"{rate.damaged} of {rate.films} films read are damaged: xpt-shards verify {root} names them."
        )
    if train.side < config.model.side:
        problems.append(
            f"The films are stored with {train.side} pixels, the model takes {config.model.side}: build "
            f"shards with --side {config.model.side}, or set --model.side {train.side}."
        )
    return rate, problems


def storage_of(config: Config, rate: ReadRate | None) -> Storage:
    """Measured with a file of 64 MB beside the run folder, where that is or will be."""
    folder = Path(config.run_dir).absolute()
    while not folder.is_dir():
        folder = folder.parent
    try:
        written, hashed = _write_and_hash(folder)
    except OSError as error:
        raise ValueError(
            f"--run_dir {config.run_dir}: cannot write in {folder}: {error.strerror}. Give another folder."
        ) from error
    if rate is None or rate.films == rate.damaged:
        size, source = FILM_BYTES_PER_PIXEL * config.model.side**2, "assumed, JPEG of quality 95"
    else:
        size, source = rate.bytes / (rate.films - rate.damaged), "mean of those read"
    return Storage(
        film_bytes=size,
        film_source=source,
        read_bytes_per_second=rate.bytes_per_second if rate else None,
        write_bytes_per_second=written,
        hash_bytes_per_second=hashed,
        free_bytes=float(shutil.disk_usage(folder).free),
    )


def _write_and_hash(folder: Path) -> tuple[float, float]:
    """Bytes/s of writing durably and of the checksum."""
    content = os.urandom(TRIAL_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.monotonic()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        written = time.monotonic()
        file.seek(0)
        hashlib.file_digest(file, "sha256")
        return TRIAL_BYTES / (written - started), TRIAL_BYTES / (time.monotonic() - written)


def print_estimate(
    found: Estimate,
    config: Config,
    zero: dict[str, Any],
    ranks: int,
    device: Device,
    storage: Storage,
    console: Console,
) -> None:
    train = config.train
    console.print(
        f"\n[bold]{config.preset}, ZeRO {zero['stage']}, {ranks} x {device.name}, {train.precision}[/]"
    )
    moments = found.memory.moments
    parts = Table("GB per rank", *moments, title_justify="left")
    for part in ("weights", "gradients", "optimizer", "activations", "buffers", "total"):
        parts.add_row(part, *(f"{getattr(moment, part) / GB:.2f}" for moment in moments.values()))
    console.print(parts)
    of_image, rate = found.work, found.images_per_second
    lines = {
        "parameters": f"{found.parameters / 1e6:.1f} M",
        "memory": f"{found.memory.total / GB:.1f} of {device.bytes / GB:.1f} GB per rank, in the step's "
        f"{found.memory.fullest}, with {train.micro_batch_size(ranks)} images"
        + (f"; host memory {found.memory.host / GB:.1f} GB per rank" if found.memory.host else ""),
        "largest micro-batch": f"{found.largest_micro_batch} images" if found.largest_micro_batch else "none",
        "work": f"{of_image.training / 1e12:.3g} TFLOP per image, "
        f"{of_image.training * train.images:.3g} FLOP for {train.images:,} images",
        "rate": f"{rate:,.4g} images/s ({found.rate_source})",
        "time": f"{found.days:,.3g} days",
        "storage": f"{found.bandwidth / 1e6:,.3g} MB/s to read at {storage.film_bytes / 1e3:,.0f} KB a film "
        f"({storage.film_source})",
        "checkpoint": f"{found.checkpoint_bytes / GB:.3g} GB, {found.checkpoint_seconds:.3g} s "
        f"({storage.write_bytes_per_second / 1e6:,.0f} MB/s written, "
        f"{storage.hash_bytes_per_second / 1e6:,.0f} MB/s hashed, measured here)",
    }
    table = Table.grid(padding=(0, 2))
    for name, said in lines.items():
        table.add_row(name, escape(said))
    console.print(table)


if __name__ == "__main__":
    main()
