"""DeepSpeed: the one module that imports it.

The JSON of `--ds_config` holds ZeRO, offload and communication. Everything about the training itself
comes from `xpt.config`, so that two places can never disagree: a JSON that sets what the
configuration owns is refused.
"""

import json
import logging
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn

from xpt.config import Config
from xpt.distributed import Rank
from xpt.schedule import parameter_groups

OWNED_BY_CONFIG = {
    "train_batch_size": "--train.batch",
    "train_micro_batch_size_per_gpu": "--train.micro_batch",
    "gradient_accumulation_steps": "--train.batch and --train.micro_batch",
    "gradient_clipping": "--train.clip_norm",
    "fp16": "--train.precision",
    "bf16": "--train.precision",
    "bfloat16": "--train.precision",
    "amp": "--train.precision",
    "torch_autocast": "--train.precision",
    "optimizer": "--train.base_lr, --train.weight_decay and --train.betas",
    "scheduler": "--train.base_lr, --train.warmup_images and --train.min_lr",
}


def read_ds_config(path: str) -> dict[str, Any]:
    """The DeepSpeed JSON at `path`, or plain ZeRO 1 for an empty path.

    Raises ValueError for a missing or malformed file, and for a field that `xpt.config` owns.
    """
    if not path:
        return {"zero_optimization": {"stage": 1}}
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(
            f"--ds_config {path}: {error.strerror}. The repository has ds_configs/zero1.json to zero3.json."
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"--ds_config {path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--ds_config {path}: got a {type(content).__name__}, wanted a JSON object")
    owned = [f"{name} (set {flag} instead)" for name, flag in OWNED_BY_CONFIG.items() if name in content]
    if owned:
        raise ValueError(
            f"--ds_config {path}: remove {', '.join(owned)}. "
            "The JSON holds ZeRO, offload and communication only; the rest comes from xpt's own flags."
        )
    return content


def zero_stage(ds: dict[str, Any]) -> int:
    return int(ds.get("zero_optimization", {}).get("stage", 0))


def precision_of(config: Config, device: torch.device) -> torch.dtype:
    """The training precision; `auto` is bf16 on a GPU and fp32 on a CPU."""
    if config.train.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[config.train.precision]


def start_engine(model: nn.Module, config: Config, ds: dict[str, Any], rank: Rank) -> DeepSpeedEngine:
    """`model` under ZeRO with AdamW.

    Raises ValueError where the ranks do not divide the batch.
    """
    train = config.train
    groups = parameter_groups(model, train.weight_decay)  # before ZeRO 3 takes the shapes away
    offloaded = ds.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"
    if offloaded:
        optimizer = DeepSpeedCPUAdam(groups, lr=train.base_lr, betas=train.betas, adamw_mode=True)
    else:
        fused = rank.device.type == "cuda"
        optimizer = torch.optim.AdamW(groups, lr=train.base_lr, betas=train.betas, fused=fused)
    if rank.device.type == "cpu":
        # An optional all-reduce for ranks of one host, compiled for a minute at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    bf16 = precision_of(config, rank.device) == torch.bfloat16
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        config={
            **ds,
            "train_batch_size": train.global_batch,
            "train_micro_batch_size_per_gpu": train.micro_batch_size(rank.count),
            "gradient_accumulation_steps": train.accumulation(rank.count),
            "gradient_clipping": train.clip_norm,
            # The overflow check reads a flag from the device in every step. Losses and norms are
            # checked at the logging interval instead, on all ranks together.
            "bf16": {"enabled": bf16, "check_grad_overflow": False},
            "steps_per_print": 2**31,
        },
    )
    return engine


def set_learning_rate(engine: DeepSpeedEngine, rate: float) -> None:
    optimizer: Any = engine.optimizer  # ZeRO's wrappers share no base class that has the groups
    for group in optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(engine: DeepSpeedEngine) -> torch.Tensor:
    """Global gradient norm of the last step before clipping, a float32 scalar on the device."""
    norm = engine.get_global_grad_norm()
    return torch.as_tensor(norm, dtype=torch.float32, device=engine.device)


def save_state(engine: DeepSpeedEngine, folder: Path) -> None:
    """Every rank's share of model and optimizer under `folder`/state; all ranks must call it."""
    engine.save_checkpoint(str(folder), tag="state", save_latest=False)


def load_state(engine: DeepSpeedEngine, folder: Path) -> None:
    """The inverse of `save_state`, for the same number of ranks and ZeRO stage."""
    loaded, _ = engine.load_checkpoint(str(folder), tag="state", load_lr_scheduler_states=False)
    assert loaded is not None, folder
