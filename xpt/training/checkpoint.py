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
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from xpt.config import RunConfig, as_json, differing_fields
from xpt.files import sync, write_atomically
from xpt.training.distributed import gather_on_first, on_first
from xpt.training.elastic import universal_copy
from xpt.training.engine import Engine, load_state, save_state
from xpt.training.saved import (
    DESCRIPTION,
    Checkpoint,
    folders,
    hash_of,
    newest,
    read,
    remove,
    sealed,
    surplus,
)

log = logging.getLogger("xpt")
BYTES_PER_PARAMETER = 16
"""Upper estimate of a checkpoint: weights, fp32 master weights and the two moments of AdamW."""

LONGEST_UNSEEN = 90.0
"""Seconds until a file of another node must be seen here."""
T = TypeVar("T")


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


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A checkpoint whose files are written, and are being hashed by the ranks that wrote them."""

    images: int
    folder: Path
    """Under its temporary name."""
    description: dict[str, Any]
    """All but the checksums."""
    digests: "Future[dict[str, str]]"
    """Of this rank's files, by name."""
    seconds: float
    """That training waited for the files."""


class Checkpoints:
    """Those of one run. All ranks make it, and call each method at the same moments.

    Training waits until the state is with the operating system. A thread of each rank then makes that rank's
    files durable and hashes them, while training goes on; `complete` waits for what is left of that, and
    gives the checkpoint its name. Until then it does not exist.
    """

    def __init__(self, run: Path, engine: Engine, job: Job, *, parameters: int) -> None:
        """`parameters`: of the model, for the room that a checkpoint needs."""
        self.job = job
        self._run, self._root = run, run / "checkpoints"
        self._engine = engine
        self._bytes = BYTES_PER_PARAMETER * parameters
        self._begun: _Begun | None = None

    def begin(
        self, images: int, *, val_loss: float | None = None, beside: dict[str, Any] | None = None
    ) -> None:
        """Write the state after `images` images, once what was begun before is complete.

        `beside` is what else the loop must remember, the same on every rank.

        Raises OSError where the disk has no room for it or becomes full; what was there before stays.
        """
        self.complete()
        started = time.monotonic()
        temporary = self._root / f".{_name(images)}.tmp"
        on_first(self._prepare)
        try:
            files = save_state(self._engine, temporary, beside or {})
        except (OSError, RuntimeError) as error:  # PyTorch's writer reports a full disk as RuntimeError
            raise OSError(
                f"{temporary}: the checkpoint could not be written ({error}). Mend that and run the same "
                "command: it goes on from the last checkpoint."
            ) from error
        self._begun = _Begun(
            images=images,
            folder=temporary,
            description={
                "images": images,
                "config": as_json(self.job.config),
                "data_hash": self.job.data_hash,
                "world_size": self.job.world_size,
                "zero_stage": self.job.zero_stage,
                "tokenizer": self.job.tokenizer,
                "val_loss": val_loss,
            },
            digests=_in_background(lambda: {str(p.relative_to(temporary)): _sync_and_hash(p) for p in files}),
            seconds=time.monotonic() - started,
        )

    def complete(self) -> None:
        """Give the checkpoint that was begun its name, and remove those that no rule keeps; does nothing
        where none was begun.

        The newest `keep_checkpoints` stay, one per `keep_every_images` images (0: none for that), and of
        those written with a `val_loss` the one where it is lowest.

        Raises OSError, on all ranks, where one could not bring its files to the disk.
        """
        begun, self._begun = self._begun, None
        if begun is None:
            return
        started = time.monotonic()
        outcome: dict[str, str] | OSError
        try:
            outcome = begun.digests.result()
        except OSError as error:
            outcome = error
        outcomes = gather_on_first(outcome)
        on_first(lambda: self._finish(begun, outcomes))
        waited = time.monotonic() - started
        log.info(
            "checkpoint %s: training waited %.1f s, %.1f s of them for the files, %.1f s for the checksums",
            *(_name(begun.images), begun.seconds + waited, begun.seconds, waited),
        )

    def resume(self) -> tuple[int, dict[str, Any]]:
        """Load the newest good checkpoint into the engine.

        Returns:
            The number of images it had seen, and what was saved `beside`; 0 and {} where the run has no
            checkpoint yet.

        Raises:
            ValueError: where checkpoints exist but none is intact, or where the newest good one is of
                another configuration, data set or ZeRO stage.
        """
        self.complete()
        started = time.monotonic()
        found = on_first(self._find)
        if found is None:
            return 0, {}
        checked = time.monotonic()
        if found.description["world_size"] == self.job.world_size:
            beside = load_state(self._engine, found.folder)
        else:
            log.info("%d ranks wrote it, %d go on", found.description["world_size"], self.job.world_size)
            copy = on_first(lambda: universal_copy(found.folder))
            beside = load_state(self._engine, copy, universal=True)
            dist.barrier()  # every rank has read it
            on_first(lambda: shutil.rmtree(copy))
        log.info(
            "checkpoint %s: checked in %.1f s, loaded in %.1f s",
            found.folder.name,
            checked - started,
            time.monotonic() - checked,
        )
        return found.images, beside

    def _find(self) -> Checkpoint | None:
        checkpoint = newest(self._run)
        if checkpoint is not None:
            _check_same_job(checkpoint, self.job)
            write_atomically(self._root / "latest", checkpoint.folder.name + "\n")
        return checkpoint

    def _prepare(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for torn in self._root.glob(".images-*.tmp"):
            shutil.rmtree(torn)
        free = shutil.disk_usage(self._root).free
        if free < self._bytes:
            raise OSError(
                f"{self._root}: {free / 1e9:.1f} GB free, a checkpoint needs up to "
                f"{self._bytes / 1e9:.1f} GB. Free some room and run the same command: it goes "
                "on from the last checkpoint."
            )

    def _finish(self, begun: _Begun, outcomes: list[dict[str, str] | OSError]) -> None:
        digests: dict[str, str] = {}
        for outcome in outcomes:
            if isinstance(outcome, OSError):
                raise OSError(
                    f"{begun.folder}: the checkpoint did not reach the disk ({outcome}). Mend that and run "
                    "the same command: it goes on from the last checkpoint."
                ) from outcome
            digests |= outcome
        for name in digests:
            _wait_for(begun.folder / name)
        for path in _files(begun.folder):  # DeepSpeed adds scripts to read the weights with
            name = str(path.relative_to(begun.folder))
            if name not in digests:
                digests[name] = _sync_and_hash(path)
        description = sealed({**begun.description, "files": digests})
        write_atomically(begun.folder / DESCRIPTION, json.dumps(description, indent=1))
        for folder in {p.parent for p in _files(begun.folder)}:
            sync(folder)
        final = self._root / _name(begun.images)
        begun.folder.rename(final)
        sync(self._root)
        write_atomically(self._root / "latest", final.name + "\n")
        rules = self.job.config.train
        kept = {"last": rules.keep_checkpoints, "every": rules.keep_every_images}
        for old in surplus(_described(self._run), **kept, best=True):
            remove(old)


def _name(images: int) -> str:
    return f"images-{images:012d}"


def _in_background(action: Callable[[], T]) -> "Future[T]":
    future: Future[T] = Future()

    def act() -> None:
        try:
            future.set_result(action())
        except Exception as error:
            future.set_exception(error)

    # A daemon: a file system that does not answer must not keep a process that gives up.
    threading.Thread(target=act, name="xpt-checkpoint", daemon=True).start()
    return future


def _wait_for(path: Path) -> None:
    """Until another node's file is seen here: file systems of a network may take half a minute for that.

    Raises OSError where it is not.
    """
    end = time.monotonic() + LONGEST_UNSEEN
    while not path.exists():
        if time.monotonic() > end:
            raise OSError(
                f"{path}: another rank wrote it, and rank 0 does not see it. --run_dir has to be on a file "
                "system that all nodes share."
            )
        time.sleep(0.5)


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
