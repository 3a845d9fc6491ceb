"""Checkpoints that are complete or do not exist.

One checkpoint is a folder `RUN/checkpoints/images-NNNNNNNNNNNN`: DeepSpeed's files of every rank under
`state/`, and `checkpoint.json` with the number of images, the configuration, the data set's hash and
the SHA-256 of every file. It is written under a temporary name, fsynced and renamed; then `latest`
names it, and older ones go. The state of the data is one integer, `images`: order, crops and masks
are functions of it.
"""

import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from xpt.config import RunConfig, as_json, differing_fields
from xpt.distributed import on_first
from xpt.elastic import universal_copy
from xpt.engine import Engine, load_state, save_state
from xpt.files import sync_folder, write_atomically
from xpt.saved import DESCRIPTION, Checkpoint, folders, hash_of, newest, read, remove, sealed, surplus

log = logging.getLogger("xpt")
BYTES_PER_PARAMETER = 16
"""Upper estimate of a checkpoint: weights, fp32 master weights and the two moments of AdamW."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a checkpoint must agree with to be continued."""

    config: RunConfig
    data_hash: str
    """SHA-256 of the data set's manifest."""
    world_size: int
    zero_stage: int
    tokenizer: str = ""
    """Fingerprint of the tokenizer of a model that writes reports."""


def save(
    run: Path,
    engine: Engine,
    job: Job,
    *,
    images: int,
    parameters: int,
    keep: int,
    keep_every: int = 0,
    val_loss: float | None = None,
    beside: dict[str, Any] | None = None,
) -> None:
    """Write the state after `images` images, then remove those that no rule keeps; all ranks must call it.

    The newest `keep` stay, one per `keep_every` images (0: none for that), and of those written with a
    `val_loss` the one where it is lowest. `beside` is what else the loop must remember, the same on every
    rank.

    Raises OSError where the disk has no room for it or becomes full; what was there before stays.
    """
    started = time.monotonic()
    root = run / "checkpoints"
    final = root / f"images-{images:012d}"
    temporary = root / f".{final.name}.tmp"

    def prepare() -> None:
        root.mkdir(parents=True, exist_ok=True)
        for torn in root.glob(".images-*.tmp"):
            shutil.rmtree(torn)
        _check_room(root, BYTES_PER_PARAMETER * parameters)

    def complete() -> None:
        description = {
            "images": images,
            "config": as_json(job.config),
            "data_hash": job.data_hash,
            "world_size": job.world_size,
            "zero_stage": job.zero_stage,
            "tokenizer": job.tokenizer,
            "val_loss": val_loss,
            "files": {str(p.relative_to(temporary)): _sync_and_hash(p) for p in _files(temporary)},
        }
        write_atomically(temporary / DESCRIPTION, json.dumps(sealed(description), indent=1))
        for folder in {p.parent for p in _files(temporary)}:
            sync_folder(folder)
        temporary.rename(final)
        sync_folder(root)
        write_atomically(root / "latest", final.name + "\n")
        for old in surplus(_described(run), last=keep, every=keep_every, best=True):
            remove(old)

    on_first(prepare)
    try:
        save_state(engine, temporary, beside or {})
    except (OSError, RuntimeError) as error:  # PyTorch's writer reports a full disk as RuntimeError
        raise OSError(
            f"{temporary}: the checkpoint could not be written ({error}). Mend that and run the same "
            "command: it goes on from the last checkpoint."
        ) from error
    dist.barrier()  # every rank has written its share
    written = time.monotonic()
    on_first(complete)
    ended = time.monotonic()
    log.info(
        "checkpoint %s: training waited %.1f s, %.1f s of them for the checksums",
        final.name,
        ended - started,
        ended - written,
    )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder}: {free / 1e9:.1f} GB free, a checkpoint needs up to {needed / 1e9:.1f} GB. "
            "Free some room and run the same command: it goes on from the last checkpoint."
        )


def resume(run: Path, engine: Engine, job: Job) -> tuple[int, dict[str, Any]]:
    """Load the newest good checkpoint into `engine`; all ranks must call it.

    Returns:
        The number of images it had seen, and what was saved `beside`; 0 and {} where the run has no
        checkpoint yet.

    Raises:
        ValueError: where checkpoints exist but none is intact, or where the newest good one is of
            another configuration, data set or ZeRO stage.
    """

    def find() -> Checkpoint | None:
        checkpoint = newest(run)
        if checkpoint is not None:
            _check_same_job(checkpoint, job)
            write_atomically(run / "checkpoints" / "latest", checkpoint.folder.name + "\n")
        return checkpoint

    started = time.monotonic()
    found = on_first(find)
    if found is None:
        return 0, {}
    checked = time.monotonic()
    if found.description["world_size"] == job.world_size:
        beside = load_state(engine, found.folder)
    else:
        log.info("%d ranks wrote it, %d go on", found.description["world_size"], job.world_size)
        copy = on_first(lambda: universal_copy(found.folder))
        beside = load_state(engine, copy, universal=True)
        dist.barrier()  # every rank has read it
        on_first(lambda: shutil.rmtree(copy))
    log.info(
        "checkpoint %s: checked in %.1f s, loaded in %.1f s",
        found.folder.name,
        checked - started,
        time.monotonic() - checked,
    )
    return found.images, beside


def _check_same_job(checkpoint: Checkpoint, job: Job) -> None:
    description = checkpoint.description
    if description["zero_stage"] != job.zero_stage:
        raise ValueError(
            f"{checkpoint.folder}: written under ZeRO {description['zero_stage']}, now ZeRO "
            f"{job.zero_stage}, and the optimizer's state cannot cross stages. Give a --ds_config of the "
            "stage that wrote it, or another --run_dir to start anew."
        )
    tokenizer = description.get("tokenizer", "")
    if tokenizer != job.tokenizer:
        raise ValueError(
            f"{checkpoint.folder}: learned with the tokenizer {tokenizer[:12] or 'none'}, got "
            f"{job.tokenizer[:12] or 'none'}, whose ids mean other words. Put the run's own tokenizer.json "
            "back, or give another --run_dir to start anew."
        )
    if job.config.allow_config_change:
        return
    different = differing_fields(job.config, description["config"])
    if description["data_hash"] != job.data_hash:
        different.append(
            f"data set: manifest {description['data_hash'][:12]} in the checkpoint, {job.data_hash[:12]} now"
        )
    if different:
        lines = "\n  ".join(different)
        raise ValueError(
            f"{checkpoint.folder}: the checkpoint is of another configuration:\n  {lines}\n"
            "Give the same flags as before, another --run_dir, or --allow_config_change."
        )


def _described(run: Path) -> list[Checkpoint]:
    """The checkpoints whose description can be read; the weights are not looked at."""
    described = []
    for folder in folders(run):
        try:
            described.append(read(folder))
        except (OSError, ValueError):
            log.warning("checkpoint %s: its %s cannot be read; it stays", folder, DESCRIPTION)
    return described


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as f:
        os.fsync(f.fileno())
    return hash_of(path)
