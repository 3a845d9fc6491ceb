"""The checkpoints of a run as they lie on disk: which there are, whether they are intact, which may go.

Nothing here needs PyTorch, so `xpt-ckpt` answers at once and works where the GPUs are not.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards_tool.schema import parse_json

log = logging.getLogger("xpt")
DESCRIPTION = "checkpoint.json"
MOST_DESCRIPTION_BYTES = 2**26
"""One of a thousand ranks has about 2**18."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    folder: Path
    description: dict[str, Any]

    @property
    def images(self) -> int:
        return self.description["images"]

    @property
    def val_loss(self) -> float | None:
        """Of the validation at the same number of images; None where there was none."""
        return self.description.get("val_loss")


def folders(run: Path) -> list[Path]:
    """The complete checkpoints, oldest first, intact or not.

    Raises OSError where they cannot be listed: a file system that is away for a while must not look
    like a run that has just begun.
    """
    root = run / "checkpoints"
    try:
        return sorted(p for p in root.iterdir() if p.name.startswith("images-"))
    except FileNotFoundError:
        return []


def newest(run: Path, *, set_aside: bool = True) -> Checkpoint | None:
    """The newest intact checkpoint of a run; None where it has none at all.

    Damaged ones that are newer are passed over with a warning. Whoever trains on sets them aside, under
    another name, because it will come to their number of images again; whoever only reads does not. Raises
    ValueError where one cannot be read, or where there were some and none is intact: starting from nothing
    would throw the run away.
    """
    found = folders(run)
    damaged = []
    for folder in reversed(found):
        fault = fault_of(folder)
        if fault is None:
            for each in damaged if set_aside else ():
                each.rename(_unused(each.with_name(f"damaged-{each.name}")))
            return read(folder)
        log.warning("checkpoint %s is damaged (%s); trying the one before", folder, fault)
        damaged.append(folder)
    if found or (run / "checkpoints" / "latest").exists():
        raise ValueError(
            f"{run / 'checkpoints'}: none of {len(found)} checkpoints is intact. Restore one from a copy, "
            "or move the folder away to start the run from the beginning."
        )
    return None


def read(folder: Path) -> Checkpoint:
    """The checkpoint by its description; its files are not looked at.

    Raises ValueError or OSError where the description cannot be read.
    """
    return Checkpoint(folder=folder, description=_description(folder / DESCRIPTION))


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, None where it is intact.

    Raises ValueError where that cannot be told because the file system does not answer.
    """
    try:
        for name, digest in _description(folder / DESCRIPTION)["files"].items():
            if hash_of(folder / name) != digest:
                return f"{name} does not have its checksum"
    except FileNotFoundError as error:
        return f"{error.filename}: {error.strerror}"
    except OSError as error:
        raise ValueError(
            f"{error.filename}: {error.strerror}. Whether this checkpoint is intact cannot be told now. Mend "
            "the file system and run the same command, or move its folder away to use the one before."
        ) from error
    except ValueError as error:
        return str(error)
    return None


def _description(path: Path) -> dict[str, Any]:
    """What the file says of its checkpoint, checked. Raises ValueError or OSError."""
    with path.open("rb") as f:
        text = f.read(MOST_DESCRIPTION_BYTES + 1)
    try:
        description = parse_json(text, MOST_DESCRIPTION_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(description, dict) or sealed(description) != description:
        raise ValueError(f"{path}: does not have its checksum")
    named = [Path(name) for name in description["files"]]
    if any(name.is_absolute() or ".." in name.parts for name in named):
        raise ValueError(f"{path}: names files outside its folder")
    return description


def sealed(description: dict[str, Any]) -> dict[str, Any]:
    """The description with the checksum of everything else in it."""
    content = {name: value for name, value in description.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "sha256": digest}


def hash_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def surplus(checkpoints: Sequence[Checkpoint], *, last: int, every: int, best: bool) -> list[Checkpoint]:
    """Those that may go. The others stay: the newest `last`; with `every`, the first at or past each
    multiple of that many images; with `best`, the one of the lowest validation loss."""
    ordered = sorted(checkpoints, key=lambda c: c.images)
    stay = {c.folder for c in ordered[-last:]}
    if every:
        first_of = {c.images // every: c.folder for c in reversed(ordered) if c.images >= every}
        stay |= set(first_of.values())
    scored = [(c.val_loss, -c.images, c.folder) for c in ordered if c.val_loss is not None]
    if best and scored:
        stay.add(min(scored)[-1])
    return [c for c in ordered if c.folder not in stay]


def remove(checkpoint: Checkpoint) -> None:
    """At once: what is left of one that is killed meanwhile does not look like a checkpoint."""
    doomed = checkpoint.folder.with_name(f".{checkpoint.folder.name}.tmp")
    checkpoint.folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # room that is not freed is no reason to stop


def _unused(path: Path) -> Path:
    """`path`, or with a number behind it where something has that name."""
    candidates = (path, *(path.with_name(f"{path.name}.{n}") for n in range(1, 1000)))
    return next(p for p in candidates if not p.exists())
