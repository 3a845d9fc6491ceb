"""Whether the tools that training stands on are there and work: a real, tiny run of each.

The checks run in a process of their own, because a broken driver or library may take its process with it:
the report then names the check that died, and the next ones run in a new process.
"""

import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.cuda import nccl

from xpt.models.attention import attention_function
from xpt.training import distributed
from xpt.training.telemetry import set_up_logging

TIMEOUT = 300
"""Seconds for all checks of one process; the first start of DeepSpeed or Triton may compile for a minute."""
SLURM_CONFS = [
    Path(place)
    for place in (os.environ.get("SLURM_CONF", ""), "/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf")
    if place
]
State = Literal["works", "broken", "absent", "unused"]
"""`unused`: not needed on this machine, so its absence is no fault."""


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    state: State
    version: str = ""
    said: str = ""
    """What was run, or what went wrong."""
    remedy: str = ""


class UnusedError(Exception):
    """The tool has nothing to do on this machine: the message says why."""


def check_environment(names: Sequence[str] | None = None) -> list[Check]:
    """All checks, or those of these names."""
    left = list(names or CHECKS)
    found: list[Check] = []
    while left:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "xpt.training.environment", *left],
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            output, ending = done.stdout, f"its process ended with status {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"").decode()
            ending = f"no answer within {TIMEOUT} s"
        lines = [line for line in output.splitlines() if line.startswith('{"name"')]
        found += [Check(**json.loads(line)) for line in lines]
        left = left[len(lines) :]
        if left:
            name = left.pop(0)
            remedy = f"see what it says: python -m xpt.training.environment {name}"
            found.append(
                Check(name=name, state="broken", version=version_of(name), said=ending, remedy=remedy)
            )
    return found


def main() -> None:
    set_up_logging(0)
    logging.getLogger("xpt").setLevel(logging.WARNING)
    for name in sys.argv[1:]:
        sys.stdout.write(json.dumps(asdict(check(name))) + "\n")
        sys.stdout.flush()


def check(name: str) -> Check:
    """The check of that name, in this process."""
    remedy = REMEDIES.get(name, "make install")
    try:
        said = CHECKS[name]()
    except UnusedError as error:
        return Check(name=name, state="unused", version=version_of(name), said=str(error))
    except ModuleNotFoundError as error:
        return Check(name=name, state="absent", said=str(error), remedy=remedy)
    except Exception as error:  # whatever a broken installation raises is what the report is about
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        return Check(name=name, state="broken", version=version_of(name), said=lines[0], remedy=remedy)
    return Check(name=name, state="works", version=version_of(name), said=said)


def version_of(name: str) -> str:
    """Of the tool that a check is about; empty where that is not known."""
    if name == "CUDA":
        return torch.version.cuda or ""
    if name == "driver":
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    if name == "NCCL" and torch.cuda.is_available():
        return ".".join(map(str, nccl.version()))
    if name == "Slurm":
        return _output("sinfo", "--version").removeprefix("slurm").strip()
    for package in PACKAGES.get(name, ()):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _output(*command: str) -> str:
    """Empty where the command is not there, fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _needs_gpu() -> None:
    if not torch.cuda.is_available():
        raise UnusedError("this machine has no GPU that PyTorch can use")


def _torch() -> str:
    a = torch.randn(64, 64)
    error = (a @ a.inverse() - torch.eye(64)).abs().max().item()
    if not error < 1e-2:
        raise RuntimeError(f"a matrix times its inverse is off by {error:.1e}")
    return f"a matrix and its inverse, error {error:.0e}; {torch.get_num_threads()} threads"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        raise UnusedError("no nvidia-smi: this machine has no NVIDIA driver")
    names = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()
    if not names:
        raise RuntimeError("nvidia-smi finds no GPU, or does not answer")
    return f"{len(names)} x {names[0]}"


def _cuda() -> str:
    if shutil.which("nvidia-smi") is None and not torch.cuda.is_available():
        raise UnusedError("no NVIDIA driver on this machine")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"there is a driver, but PyTorch (built for CUDA {torch.version.cuda}) cannot use it"
        )
    for index in range(torch.cuda.device_count()):
        a = torch.randn(256, 256, device=f"cuda:{index}")
        torch.testing.assert_close((a @ a).cpu(), a.cpu() @ a.cpu(), rtol=1e-2, atol=0.1)
    return f"a matrix product on each of {torch.cuda.device_count()} GPUs, as on the CPU"


def _nccl() -> str:
    _needs_gpu()
    count = torch.cuda.device_count()
    values = [torch.full((1024,), 1.0, device=f"cuda:{index}") for index in range(count)]
    nccl.all_reduce(values)
    if not all((value == count).all().item() for value in values):
        raise RuntimeError(f"the sum over {count} GPUs is wrong")
    return f"a sum over {count} GPUs of this node"


def _triton() -> str:
    from kernels import mask_and_gather
    from kernels.ahead_of_time import compile_kernel
    from kernels.catalogue import launches

    if not torch.cuda.is_available():
        launch = next(launches())
        compiled = compile_kernel(launch.kernel, launch.arguments, launch.constants, 90)
        return f"{launch.name}: compiled for sm_90, {compiled.registers} registers"
    image = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8, device="cuda")
    region, valid = torch.zeros(2, 16, device="cuda"), torch.ones(2, 16, dtype=torch.bool, device="cuda")
    position = torch.arange(2, device="cuda")
    settings: dict[str, Any] = {
        **{"seed": 0, "keep": 4, "predict": 12, "patch": 16, "keep_inside": 0.5, "keep_outside": 0.5},
        **{"draw": "stratified", "mean": 0.5, "std": 0.25, "dtype": torch.float32},
    }
    ours, plain = (
        mask_and_gather(image, region, valid, position, backend=backend, **settings).visible_BK
        for backend in ("triton", "torch")
    )
    if not torch.equal(ours, plain):
        raise RuntimeError("the masking kernel chooses other patches than its reference")
    return "the masking kernel agrees with its reference"


def _flash_attention() -> str:
    if not version_of("flash-attn"):
        raise UnusedError("not installed; needed for --model.attention flash_attn only")
    _needs_gpu()
    attend = attention_function("flash_attn")
    q, k, v = (torch.randn(1, 128, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in "qkv")
    torch.testing.assert_close(attend(q, k, v), attention_function("sdpa")(q, k, v), rtol=2e-2, atol=2e-2)
    return "attention as PyTorch's"


def _dali() -> str:
    from xpt.data.trial import decode_a_picture

    return decode_a_picture(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _deepspeed() -> str:
    from xpt.config import TrainConfig
    from xpt.training.engine import start_engine

    own = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(own)
    os.environ.pop("MASTER_PORT", None)
    rank = distributed.start()
    model = torch.nn.Linear(16, 1)
    groups = [{"params": list(model.parameters())}]
    precision = "bf16" if rank.device.type == "cuda" else "fp32"
    settings = TrainConfig(images=4, batch=4, micro_batch=4, base_lr=0.01, precision=precision)
    engine = start_engine(model, groups, settings, {"zero_optimization": {"stage": 2}}, rank)
    x = torch.ones(4, 16, device=rank.device, dtype=next(engine.parameters()).dtype)
    losses = []
    for _ in range(3):
        loss = (engine(x) - 1).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    distributed.stop()
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"three steps of ZeRO 2 did not lower the loss: {losses}")
    return f"three steps of ZeRO 2 on one {rank.device.type} rank"


def _slurm() -> str:
    if shutil.which("sinfo") is None:
        raise UnusedError("not on this machine; needed for slurm/*.sh only")
    if not any(path.exists() for path in SLURM_CONFS):
        raise UnusedError("its commands are here, but this machine belongs to no cluster (no slurm.conf)")
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    if done.returncode or "UP" not in done.stdout:
        raise RuntimeError(f"scontrol ping: {(done.stdout + done.stderr).strip()}")
    nodes = _output("sinfo", "--noheader", "--format=%D %G").splitlines()
    return f"the controller answers; nodes and GPUs: {', '.join(nodes) or 'none'}"


CHECKS: dict[str, Callable[[], str]] = {
    "PyTorch": _torch,
    "driver": _driver,
    "CUDA": _cuda,
    "NCCL": _nccl,
    "triton": _triton,
    "flash-attn": _flash_attention,
    "DALI": _dali,
    "DeepSpeed": _deepspeed,
    "Slurm": _slurm,
}
PACKAGES = {
    "PyTorch": ("torch",),
    "triton": ("triton",),
    "flash-attn": ("flash-attn", "flash-attn-4"),
    "DALI": ("nvidia-dali-cuda130",),
    "DeepSpeed": ("deepspeed",),
}
REMEDIES = {
    "driver": "ask the administrator: `nvidia-smi` must list the GPUs",
    "CUDA": "install a driver as new as the CUDA version that PyTorch was built for, or an older PyTorch",
    "NCCL": "run with NCCL_DEBUG=INFO and read its first warning; on one node NCCL_P2P_DISABLE=1 tells more",
    "flash-attn": "pip install -e '.[flash]' or '.[fa4]', or set --model.attention sdpa",
    "Slurm": "ask the administrator: `scontrol ping` must answer UP on this machine",
}


def faults(checks: Sequence[Check]) -> Iterator[Check]:
    """What is needed here and does not work."""
    yield from (each for each in checks if each.state in ("broken", "absent"))


if __name__ == "__main__":
    main()
