"""Which process this is, and how it reaches the others, under any launcher.

`deepspeed` and `torchrun` set RANK, WORLD_SIZE and LOCAL_RANK; under `srun` they come from Slurm's
variables; a plain `python` process is rank 0 of 1.
"""

import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process among those of the job."""

    index: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.index == 0


def start(minutes: float = 30.0) -> Rank:
    """Join the job's process group: NCCL where there is a GPU, gloo elsewhere.

    A collective that takes longer than `minutes` ends the process. Raises ValueError as `place` does.
    """
    os.environ.update(_environment())
    rank = place()
    backend = "nccl" if rank.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    return rank


def place() -> Rank:
    """This process among those of the job, for work that needs none of them: it is not waited for.

    Raises ValueError where a rank of a job on GPUs has no GPU of its own.
    """
    ranks = _ranks()
    index, count, local = (int(ranks[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not torch.cuda.is_available():
        return Rank(index=index, count=count, device=torch.device("cpu"))
    # With `srun --gpus-per-task 1` each process sees its own GPU only, as number 0.
    local = local if torch.cuda.device_count() > 1 else 0
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local} has no GPU: this node shows {torch.cuda.device_count()}. "
            "Start at most one process per GPU (deepspeed --num_gpus, srun --ntasks-per-node)."
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return Rank(index=index, count=count, device=device)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, in place."""
    dist.all_reduce(values)
    return values


def gather_objects(value: T) -> list[T]:
    """Every rank's `value`, by rank; picklable and small."""
    gathered: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_on_first(value: T) -> list[T]:
    """Every rank's `value`, by rank, on rank 0; nothing on the others."""
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered or []


def on_first(action: Callable[[], T]) -> T:
    """Do `action` on rank 0 only; its result, or the exception it raised, reaches every rank.

    So ranks part neither over what one of them found on disk nor over what went wrong with it.
    """
    outcome: list[T | Exception] = []
    if dist.get_rank() == 0:
        try:
            outcome = [action()]
        except Exception as error:
            outcome = [error]
    else:
        outcome = [RuntimeError("rank 0 sent nothing")]
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _environment() -> dict[str, str]:
    ranks = _ranks()
    return {**ranks, **_address(ranks)}


def _ranks() -> dict[str, str]:
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return {
            "RANK": env["RANK"],
            "WORLD_SIZE": env["WORLD_SIZE"],
            "LOCAL_RANK": env.get("LOCAL_RANK", "0"),
        }
    if "SLURM_STEP_ID" in env:  # a task of srun; the batch script itself has SLURM_PROCID too
        return {
            "RANK": env["SLURM_PROCID"],
            # The shell that salloc gives is a step of one task in a job of many.
            "WORLD_SIZE": env.get("SLURM_STEP_NUM_TASKS") or env["SLURM_NTASKS"],
            "LOCAL_RANK": env["SLURM_LOCALID"],
        }
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _address(ranks: dict[str, str]) -> dict[str, str]:
    """Where the ranks meet."""
    env = os.environ
    if "MASTER_ADDR" in env:
        address = env["MASTER_ADDR"]
    elif ranks["WORLD_SIZE"] == "1" or "SLURM_JOB_NODELIST" not in env:
        address = "127.0.0.1"
    else:
        hosts = ["scontrol", "show", "hostnames", env["SLURM_JOB_NODELIST"]]
        address = subprocess.run(hosts, check=True, capture_output=True, text=True).stdout.split()[0]
    if "MASTER_PORT" in env:
        port = env["MASTER_PORT"]
    elif ranks["WORLD_SIZE"] == "1":
        port = str(_free_port())
    else:
        # A bare srun: every rank derives the same port from the job. Our job scripts look for a free one.
        port = str(20_000 + int(env.get("SLURM_JOB_ID", "0")) % 20_000)
    return {"MASTER_ADDR": address, "MASTER_PORT": port}


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
