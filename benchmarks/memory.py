"""The memory that a step takes, measured, beside the estimate of `xpt/memory.py`.

    OMP_NUM_THREADS=1 python -m benchmarks.memory [--cases demo vit_b_512 vit_l_1280] [--json FILE]

Ranks on this machine's CPU train each preset for two steps under ZeRO 1, 2 and 3, on random films. What
counts is resident memory at its highest in each part of a step, less what the process held before it made the
model; glibc is told to give freed blocks back at once, so that resident memory is what is in use. ViT-L
needs 11 GB with --ranks 1, 16 GB with 2, and half an hour of one core.
"""

import gc
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from xpt.command_line import parse
from xpt.config import Config
from xpt.memory import GB, Memory, pretraining_memory
from xpt.models.mae import MAE
from xpt.training import distributed
from xpt.training.distributed import Rank
from xpt.training.engine import read_ds_config, resolved, start_engine
from xpt.training.schedule import parameter_groups

ROOT = Path(__file__).parent.parent
STEPS = 2
CASES = {
    "demo": ["--preset", "demo", "--train.batch", "256", "--train.micro-batch", "64"],
    "vit_b_512": ["--preset", "vit_b_512", "--train.batch", "16", "--train.micro-batch", "4"],
    "vit_l_1280": ["--preset", "vit_l_1280", "--train.batch", "2", "--train.micro-batch", "1"],
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
SMALL = ["--preset", "demo", "--model.side", "32", "--model.width", "8"]
SMALL += ["--model.decoder-width", "8", "--train.batch", "2"]


@dataclass(frozen=True, kw_only=True)
class Options:
    cases: tuple[str, ...] = tuple(CASES)
    ranks: int = 2
    json: Path | None = None
    """Write the numbers there, too."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Bytes of rank 0, by moment of a step."""

    case: str
    stage: int
    measured: dict[str, int]
    estimated: dict[str, int]

    @property
    def error(self) -> float:
        """Of the estimated peak, as a share of the measured one."""
        return max(self.estimated.values()) / max(self.measured.values()) - 1


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    found = measure({name: CASES[name] for name in options.cases}, ranks=options.ranks)
    table = Table("preset", "ZeRO", "forward", "backward", "update", "peak", "estimate", "error")
    for each in found:
        cells = [f"{each.measured[name] / GB:.2f}" for name in ("forward", "backward", "update")]
        peaks = (max(values.values()) / GB for values in (each.measured, each.estimated))
        table.add_row(
            each.case, str(each.stage), *cells, *(f"{peak:.2f}" for peak in peaks), f"{each.error:+.0%}"
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=2) + "\n")


def measure(cases: dict[str, list[str]], *, ranks: int = 2) -> list[Found]:
    """Each case, flags of xpt-train, under each ZeRO stage, in one set of processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # ZeRO 3 leaves hooks behind, so it comes last.
    work = [
        (name, stage, [*flags, "--ds_config", f"ds_configs/zero{stage}.json"])
        for stage in (1, 2, 3)
        for name, flags in cases.items()
    ]
    processes = []
    for rank in range(ranks):
        environment = {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        }
        command = [sys.executable, "-c", "from benchmarks.memory import rank_main; rank_main()"]
        processes.append(
            subprocess.Popen(
                [*command, json.dumps(work)],
                cwd=ROOT,
                env=os.environ | GIVE_BACK | environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    statuses = [process.returncode for process in processes]
    if any(statuses):
        raise RuntimeError(f"ranks ended with status {statuses}")
    lines = [line for line in outputs[0].splitlines() if line.startswith("{")]
    return [Found(**json.loads(line)) for line in lines]


def rank_main() -> None:
    torch.set_num_threads(1)
    rank = distributed.start()
    for stage in (1, 3):  # what libraries load at their first use is no part of a model's memory
        _peaks(_config([*SMALL, "--ds_config", f"ds_configs/zero{stage}.json"], rank), rank)
    for name, stage, flags in json.loads(sys.argv[1]):
        config = _config(flags, rank)
        zero = read_ds_config(config.ds_config)["zero_optimization"]
        estimate = estimated(config, zero, rank.count)
        measured = _peaks(config, rank)
        values = {moment: content.total for moment, content in estimate.moments.items()}
        if rank.is_first:
            found = Found(case=name, stage=stage, measured=measured, estimated=values)
            sys.stdout.write(json.dumps(asdict(found)) + "\n")
            sys.stdout.flush()
    distributed.stop()


def estimated(config: Config, zero: dict[str, Any], ranks: int) -> Memory:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MAE(config).parameters())
    return pretraining_memory(config, parameters=parameters, zero=zero, ranks=ranks, on_gpu=False)


def _config(flags: list[str], rank: Rank) -> Config:
    return resolved(parse(flags), rank.device)


def _peaks(config: Config, rank: Rank) -> dict[str, int]:
    """Bytes by moment of a step, the largest of all steps."""
    settings, side, tokens = config.train, config.model.side, config.model.tokens
    images = settings.micro_batch_size(rank.count)
    gc.collect()
    before = _status("VmRSS")
    model = MAE(config)
    ds = read_ds_config(config.ds_config)
    engine = start_engine(model, parameter_groups(model, settings.weight_decay), settings, ds, rank)
    peaks: dict[str, int] = dict.fromkeys(("forward", "backward", "update"), 0)

    def mark(moment: str) -> None:
        peaks[moment] = max(peaks[moment], _status("VmHWM") - before)
        _forget_peak()

    _forget_peak()
    for _ in range(STEPS * settings.accumulation(rank.count)):
        prediction = engine(
            torch.randint(0, 256, (images, 1, side, side), dtype=torch.uint8),
            torch.rand(images, tokens),
            torch.ones(images, tokens, dtype=torch.bool),
            torch.arange(images),
            0,
        )
        mark("forward")
        engine.backward(prediction.loss)
        del prediction
        mark("backward")
        engine.step()
        mark("update")
    engine.destroy()
    return peaks


def _status(name: str) -> int:
    """Bytes in /proc/self/status: VmRSS now, VmHWM at its highest since it was last forgotten."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
