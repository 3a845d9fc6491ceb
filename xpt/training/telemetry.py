"""What a run leaves to look at: console lines, metrics.jsonl, TensorBoard, config.json."""

import dataclasses
import importlib.metadata
import json
import logging
import math
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch.utils.tensorboard import SummaryWriter

from xpt.config import RunConfig
from xpt.files import METRICS, read_json_lines, write_atomically

log = logging.getLogger("xpt")
PACKAGES = ("torch", "triton", "timm", "deepspeed", "nvidia-dali-cuda130", "webdataset", "numpy")


def set_up_logging(rank: int) -> None:
    """Lines with the time on rank 0; warnings and errors, with the rank, on the others."""
    who = "" if rank == 0 else f"[rank {rank}] "
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s {who}%(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    # DeepSpeed calls collectives by names that PyTorch renamed: a line per rank and kind, of no use here.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*deprecated")


class RunLog:
    """The files of a run folder that grow: written by rank 0 only."""

    def __init__(self, run: Path, images: int) -> None:
        """Go on after `images` images: what a stopped run wrote past its last checkpoint is dropped."""
        self._metrics = run / METRICS
        self._skipped = run / "skipped.jsonl"
        for path in (self._metrics, self._skipped):
            _truncate(path, images)
        self._pictures = run / "pictures"
        self._pictures.mkdir(exist_ok=True)
        self._board = SummaryWriter(str(run), purge_step=images + 1 if images else 0)

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """Values that are not finite are left out."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        with self._metrics.open("a") as f:
            f.write(json.dumps({"images": images, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, images)
        self._board.flush()

    def skipped(self, images: int, step: dict[str, Any]) -> None:
        """A step that moved nothing, which ended at `images` images."""
        with self._skipped.open("a") as f:
            f.write(json.dumps({"images": images, **step}) + "\n")

    def picture(self, images: int, name: str, picture_HWC: UInt8[np.ndarray, "H W 3"]) -> Path:
        import cv2

        path = self._pictures / f"{name}-{images:012d}.png"
        ok, encoded = cv2.imencode(".png", picture_HWC[:, :, ::-1])
        assert ok
        write_atomically(path, encoded.tobytes())
        self._board.add_image(name, picture_HWC, images, dataformats="HWC")
        self._board.flush()
        return path

    def close(self) -> None:
        self._board.close()


def write_provenance(run: Path, config: RunConfig, ds: dict[str, Any], images: int) -> None:
    """The resolved configuration, DeepSpeed's JSON, git revision and package versions.

    In `config.json` for the start of a run, in `config-IMAGES.json` for each place it went on from.
    """
    versions = {name: _version(name) for name in PACKAGES}
    content = {
        "config": dataclasses.asdict(config),
        "deepspeed": ds,
        "revision": _revision(),
        "versions": versions,
    }
    name = f"config-{images:012d}.json" if images else "config.json"
    write_atomically(run / name, json.dumps(content, indent=2) + "\n")


class Pace:
    """Images per second of an interval of training, and the time that the rest of the run will take."""

    def __init__(self, images: int, end: int) -> None:
        self._start = self._interval = (time.monotonic(), images)
        self._end = end

    def start_interval(self, images: int) -> None:
        """What came before, a validation or a checkpoint, does not count as training."""
        self._interval = (time.monotonic(), images)

    def measure(self, images: int) -> tuple[float, str]:
        """(images/s of the interval, time left as H:MM:SS at the mean rate of this process)."""
        recent, mean = (
            (images - before) / max(1e-9, time.monotonic() - since)
            for since, before in (self._interval, self._start)
        )
        left = round((self._end - images) / mean)
        return recent, f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"


def _truncate(lines: Path, images: int) -> None:
    """Keep the lines up to `images`; none, not even of the validation before the first step, for 0."""
    if images == 0:
        lines.unlink(missing_ok=True)
    if not lines.exists():
        return
    kept = [row for row in read_json_lines(lines) if row["images"] <= images]
    write_atomically(lines, "".join(json.dumps(row) + "\n" for row in kept))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """The git revision of the source, with "+" where files were changed; "unknown" outside a checkout."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
