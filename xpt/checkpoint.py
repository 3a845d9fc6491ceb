"""Checkpoints that are complete or do not exist.

One checkpoint is a folder `RUN/checkpoints/images-NNNNNNNNNNNN`: DeepSpeed's files of every rank under
`state/`, and `checkpoint.json` with the number of images, the configuration, the data set's hash and
the SHA-256 of every file. It is written under a temporary name, fsynced and renamed; then `latest`
names it, and older ones go. The state of the data is one integer, `images`: order, crops and masks
are functions of it.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from xpt.config import RunConfig, as_json, differing_fields
from xpt.distributed import on_first
from xpt.engine import Engine, load_state, save_state
from xpt.files import sync_folder, write_atomically

log = logging.getLogger("xpt")
DESCRIPTION = "checkpoint.json"
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


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    folder: Path
    description: dict[str, Any]

    @property
    def images(self) -> int:
        return self.description["images"]


def save(
    run: Path,
    engine: Engine,
    job: Job,
    *,
    images: int,
    parameters: int,
    keep: int,
    beside: dict[str, Any] | None = None,
) -> None:
    """Write the state after `images` images; all ranks must call it.

    `beside` is what else the loop must remember, the same on every rank.

    Raises OSError where the disk has no room for it or becomes full; what was there before stays.
    """
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
            "files": {str(p.relative_to(temporary)): _sync_and_hash(p) for p in _files(temporary)},
        }
        write_atomically(temporary / DESCRIPTION, json.dumps(_sealed(description), indent=1))
        for folder in {p.parent for p in _files(temporary)}:
            sync_folder(folder)
        temporary.rename(final)
        sync_folder(root)
        write_atomically(root / "latest", final.name + "\n")
        for old in sorted(root.glob("images-*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)  # room that is not freed is no reason to stop

    on_first(prepare)
    try:
        save_state(engine, temporary, beside or {})
    except (OSError, RuntimeError) as error:  # PyTorch's writer reports a full disk as RuntimeError
        raise OSError(
            f"{temporary}: the checkpoint could not be written ({error}). Mend that and run the same "
            "command: it goes on from the last checkpoint."
        ) from error
    dist.barrier()  # every rank has written its share
    on_first(complete)


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
            another configuration, data set, number of ranks or ZeRO stage.
    """

    def find() -> Checkpoint | None:
        checkpoint = newest(run)
        if checkpoint is not None:
            _check_same_job(checkpoint, job)
            write_atomically(run / "checkpoints" / "latest", checkpoint.folder.name + "\n")
        return checkpoint

    found = on_first(find)
    if found is None:
        return 0, {}
    return found.images, load_state(engine, found.folder)


def newest(run: Path) -> Checkpoint | None:
    """The newest intact checkpoint of a run; None where it has none at all.

    Damaged ones that are newer are set aside, under another name, with a warning: training will come
    to their number of images again. Raises ValueError where every one is damaged: starting from nothing
    would throw the run away.
    """
    folders = sorted((run / "checkpoints").glob("images-*"), reverse=True)
    damaged = []
    for folder in folders:
        fault = _fault(folder)
        if fault is None:
            for each in damaged:
                each.rename(_unused(each.with_name(f"damaged-{each.name}")))
            return Checkpoint(folder=folder, description=json.loads((folder / DESCRIPTION).read_text()))
        log.warning("checkpoint %s is damaged (%s); trying the one before", folder, fault)
        damaged.append(folder)
    if folders:
        raise ValueError(
            f"{run / 'checkpoints'}: none of {len(folders)} checkpoints is intact. Restore one from a copy, "
            "or move the folder away to start the run from the beginning."
        )
    return None


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it where something has that name."""
    candidates = (path, *(path.with_name(f"{path.name}.{n}") for n in range(1, 1000)))
    return next(p for p in candidates if not p.exists())


def _check_same_job(checkpoint: Checkpoint, job: Job) -> None:
    description = checkpoint.description
    for name, ours in (("world_size", job.world_size), ("zero_stage", job.zero_stage)):
        if description[name] != ours:
            raise ValueError(
                f"{checkpoint.folder}: {name} {description[name]} in the checkpoint, {ours} now. "
                f"Start with the {name} of the checkpoint, or with another --run_dir."
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


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, None where it is intact."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        if not isinstance(description, dict):
            return f"{DESCRIPTION} holds a {type(description).__name__}"
        if _sealed(description) != description:
            return f"{DESCRIPTION} does not have its checksum"
        for name, digest in description["files"].items():
            if _hash(folder / name) != digest:
                return f"{name} does not have its checksum"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except ValueError as error:
        return f"{DESCRIPTION} cannot be read: {error}"
    return None


def _sealed(description: dict[str, Any]) -> dict[str, Any]:
    """The description with the checksum of everything else in it."""
    content = {name: value for name, value in description.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "sha256": digest}


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _hash(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as f:
        os.fsync(f.fileno())
        return hashlib.file_digest(f, "sha256").hexdigest()
