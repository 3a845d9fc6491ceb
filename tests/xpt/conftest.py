"""Tiny training runs in processes of their own."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from shards_tool.build import build
from shards_tool.settings import BuildSettings
from tests.conftest import ROOT
from tests.programs import Process, programs
from tests.shards_tool.archive import write_key

if TYPE_CHECKING:
    from xpt.training.distributed import Rank

TINY = [
    *("--preset", "demo", "--model.side", "64", "--model.width", "24", "--model.depth", "2"),
    *("--model.decoder-width", "16", "--model.decoder-depth", "1", "--data.crop-to", "frame"),
    *("--train.images", "96", "--train.batch", "8", "--train.micro-batch", "2"),
    *("--train.base-lr", "0.1", "--train.warmup-images", "16"),
    *("--train.log-images", "8", "--train.checkpoint-images", "24"),
    *("--train.eval-images", "48", "--train.eval-films", "6"),
]
"""12 steps of 8 images; metrics at each, checkpoints at every third."""


@pytest.fixture(scope="module")
def rank() -> Iterator["Rank"]:
    """This process as the only one of a job, whose variables no later test inherits."""
    from xpt.training import distributed

    before = dict(os.environ)
    yield distributed.start()
    distributed.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 60 smooth random pictures of 96 pixels, made by the shard tool."""
    folder = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(0)
    (folder / "films").mkdir()
    for number in range(60):
        pixels = cv2.resize(
            rng.integers(0, 256, (6, 5), dtype=np.uint8), (80, 96), interpolation=cv2.INTER_CUBIC
        )
        cv2.imwrite(str(folder / "films" / f"{number}.png"), pixels)
    settings = BuildSettings(side=96, shard_size=8, fractions=(0.8, 0.2, 0.0), contour="rect")
    # The splits follow from the key: with one of its own, every session would train on other films.
    build([folder / "films"], folder / "shards", settings, key_file=write_key(folder / "key"), workers=0)
    return folder / "shards"


@dataclass(frozen=True)
class Run:
    """Ranks of one training run, started without a launcher."""

    folder: Path
    processes: list[Process]

    def wait(self, timeout: float = 120) -> list[int]:
        return [p.wait(timeout) for p in self.processes]

    def wait_for_images(self, images: int, timeout: float = 120) -> None:
        """Until the metrics have a line at or past `images`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and all(p.poll() is None for p in self.processes):
            if any(row["images"] >= images for row in rows(self.folder)):
                return
            time.sleep(0.02)
        raise AssertionError(f"no line of metrics at {images} images:\n{self.output()}")

    def send(self, number: signal.Signals) -> None:
        for p in self.processes:
            p.send_signal(number)

    def output(self) -> str:
        return "\n".join(
            log.read_text() for log in sorted(self.folder.parent.glob(f"{self.folder.name}-*.log"))
        )


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of 36 patients: "Spot" is a bright square on the left, "Bar" a dark one on the right."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    lines = ["file,patient,label:Spot,label:Bar"]
    (folder / "films").mkdir()
    for number in range(72):
        pixels = rng.integers(96, 160, (96, 96), dtype=np.uint8)
        spot, bar = number % 2, number // 2 % 2
        y = int(rng.integers(8, 64))
        if spot:
            pixels[y : y + 16, 16:32] = 255
        if bar:
            pixels[y : y + 16, 64:80] = 0
        cv2.imwrite(str(folder / "films" / f"{number}.png"), pixels)
        lines.append(f"{number}.png,p{number // 2},{spot},{bar if number % 9 else -1}")
    (folder / "labels.csv").write_text("\n".join(lines))
    (folder / "key").write_text("0123456789abcdef" * 4)
    settings = BuildSettings(side=96, shard_size=8, fractions=(0.5, 0.25, 0.25))
    build(
        [folder / "films"],
        folder / "shards",
        settings,
        meta=[folder / "labels.csv"],
        key_file=folder / "key",
        workers=0,
    )
    return folder / "shards"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(
    folder: Path,
    shards: Path,
    *flags: str,
    ranks: int = 1,
    sabotage: str = "",
    job: str = "train",
    base: Sequence[str] = TINY,
) -> Run:
    """Start a tiny run of `ranks` processes of xpt-JOB; later flags win over those of `base`.

    `sabotage` is Python that each process runs before it trains.
    """
    port = free_port()
    arguments = [*base, "--data.path", str(shards), "--run_dir", str(folder), *flags]
    processes = []
    for rank in range(ranks):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        log = Path(f"{folder}-{rank}.log")
        process = programs().start(
            f"xpt-{job}", arguments, ROOT, log=log, environment=environment, sabotage=sabotage
        )
        processes.append(process)
    return Run(folder, processes)


def rows(folder: Path) -> list[dict]:
    """The complete lines of the metrics so far."""
    path = folder / "metrics.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )


def trace(folder: Path) -> list[dict[str, float]]:
    """What must be identical between two runs, bit for bit."""
    names = ("images", "loss", "lr", "grad_norm", "val/loss", "val/loss_chest")
    return [{name: row[name] for name in names if name in row} for row in rows(folder)]


@pytest.fixture(scope="session")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one rank."""
    run = start(tmp_path_factory.mktemp("runs") / "undisturbed", shards)
    assert run.wait() == [0], run.output()
    return run.folder
