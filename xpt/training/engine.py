"""DeepSpeed: the one module that imports it.

The JSON of `--ds_config` holds ZeRO, offload and communication. Everything about the training itself
comes from `xpt.config`, so that two places can never disagree: a JSON that sets what the
configuration owns is refused.
"""

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.engine import DeepSpeedEngine as Engine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero import stage3, stage_1_and_2
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import nn
from torch.distributed import distributed_c10d

from xpt.config import RunConfig, TrainConfig
from xpt.training.distributed import Rank

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
    "data_types": "--train.precision",
    "steps_per_print": "--train.log_images",
}
IN_CHECKPOINTS = [LossScaler, ZeroStageEnum, fragment_address]
"""DeepSpeed's classes that its checkpoints hold, beside tensors and plain data. They only keep values."""
R = TypeVar("R", bound=RunConfig)
OF_THE_JSON = (
    "zero_optimization",
    "aio",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
)


def read_ds_config(path: str) -> dict[str, Any]:
    """The DeepSpeed JSON at `path`, or plain ZeRO 1 for an empty path.

    Raises ValueError for a missing or malformed file, for a field that `xpt.config` owns, and for one
    that is neither ZeRO nor communication.
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
    for name in content:
        if name not in OF_THE_JSON:
            near = difflib.get_close_matches(name, OF_THE_JSON, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"--ds_config {path}: unknown field {name}. {hint}Known: {', '.join(OF_THE_JSON)}."
            )
    zero = content.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        raise ValueError(
            f"--ds_config {path}: zero_optimization: got {zero!r}, wanted an object with stage 1, 2 or 3"
        )
    return content


def zero_stage(ds: dict[str, Any]) -> int:
    return ds["zero_optimization"]["stage"]


def resolved(config: R, device: torch.device) -> R:
    """`config` with its precision named: `auto` is bf16 on a GPU and fp32 on a CPU.

    Raises ValueError for flash attention where it cannot run.
    """
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    if config.model.attention == "flash_attn" and (device.type != "cuda" or precision != "bf16"):
        raise ValueError(
            f"--model.attention flash_attn: got {precision} on {device.type}, but flash-attn runs in bf16 on "
            "GPUs only. Set --model.attention sdpa, or --train.precision bf16 on a GPU."
        )
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))


def start_engine(
    model: nn.Module, groups: list[dict[str, Any]], train: TrainConfig, ds: dict[str, Any], rank: Rank
) -> Engine:
    """`model` under ZeRO with AdamW on `groups` of its parameters, for a `resolved` configuration.

    Raises ValueError where the ranks do not divide the batch.
    """
    offload = ds["zero_optimization"].get("offload_optimizer") or {}
    if offload.get("device", "none") != "none":
        optimizer = DeepSpeedCPUAdam(groups, lr=train.base_lr, betas=train.betas, adamw_mode=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=train.base_lr, betas=train.betas, fused=True)
    if rank.device.type == "cpu":
        # An optional all-reduce for ranks of one host, compiled for a minute at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would read every step's gradient norm on the host to drop steps where it is not finite.
    # Here that happens on the device.
    for module in (stage_1_and_2, stage3, bf16_optimizer):
        vars(module)["is_invalid_grad_norm"] = lambda norm: False
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        config={
            **ds,
            "train_batch_size": train.global_batch,
            "train_micro_batch_size_per_gpu": train.micro_batch_size(rank.count),
            "gradient_accumulation_steps": train.accumulation(rank.count),
            "gradient_clipping": train.clip_norm,
            "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": False},
            # Sums of many micro-batches in bf16 would lose the small ones.
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 2**31,
        },
    )
    _skip_steps_that_are_not_finite(optimizer, engine)
    # DeepSpeed's own process group would keep PyTorch's time-out (10 minutes for NCCL).
    set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout
    group: Any = engine.data_parallel_group
    set_timeout(timedelta(minutes=train.hang_minutes), group)
    return engine


def _skip_steps_that_are_not_finite(optimizer: torch.optim.Optimizer, engine: Engine) -> None:
    """Weights, moments and step counts stay as they are where the gradient norm is not finite.

    The norm is that of the whole gradient, so all ranks skip together. Fused AdamW takes the decision from
    the device; DeepSpeed's CPU Adam works on the host, where the gradient already is.
    """
    step: Any = optimizer.step

    def guarded() -> None:
        is_bad = ~torch.isfinite(gradient_norm(engine))
        if isinstance(optimizer, DeepSpeedCPUAdam):
            if not is_bad.item():
                forget_steps(optimizer)
                step()
        else:
            optimizer.found_inf = is_bad.float()  # pyright: ignore[reportAttributeAccessIssue]
            step()

    optimizer.step = guarded  # pyright: ignore[reportAttributeAccessIssue]


def forget_steps(optimizer: DeepSpeedCPUAdam) -> None:
    """Make the next update compute its bias correction from the step's number alone.

    DeepSpeed's CPU Adam multiplies beta ** t on from step to step in float32, but takes the power where a
    step does not follow the one before, as in a process that goes on from a checkpoint: the two differ in
    the last bit, and a run that was killed would not end as an undisturbed one. An update of nothing at a
    far-off step makes it take the power every time.
    """
    group, nothing = optimizer.param_groups[0], [torch.zeros(1) for _ in range(4)]
    optimizer.ds_opt_adam.adam_update(
        optimizer.opt_id, 2**40, group["lr"], *group["betas"], group["eps"], 0.0, True, *nothing
    )


def set_learning_rate(engine: Engine, rate: float) -> None:
    optimizer: Any = engine.optimizer  # ZeRO's wrappers share no base class that has the groups
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def gradient_norm(engine: Engine) -> torch.Tensor:
    """Global gradient norm of the last step before clipping, a float32 scalar on the device.

    Infinite where a gradient was not finite. Does not wait for the device.
    """
    zero: Any = engine.optimizer  # the wrapper has the norm already inside a step, the engine after it
    norm = torch.as_tensor(zero._global_grad_norm, dtype=torch.float32).detach()
    norm = norm.to(engine.device, non_blocking=True)
    return torch.where(norm >= 0, norm, torch.inf)  # some of DeepSpeed's norms are -1 instead


def save_state(engine: Engine, folder: Path, beside: dict[str, Any]) -> list[Path]:
    """Every rank's share of model and optimizer under `folder`/state, and `beside`; all ranks call it.

    Returns:
        The files that this rank wrote. Rank 0 adds small ones that are not among them.
    """
    written: list[Path] = []
    writer: Any = engine.checkpoint_engine
    write = writer.save

    def write_and_note(state_dict: object, path: str) -> None:
        write(state_dict, path)
        written.append(Path(path))

    writer.save = write_and_note
    try:
        engine.save_checkpoint(str(folder), tag="state", client_state={"beside": beside}, save_latest=False)
    finally:
        writer.save = write
    return written


def load_state(engine: Engine, folder: Path, *, universal: bool = False) -> dict[str, Any]:
    """The inverse of `save_state`, for the same ZeRO stage; returns `beside`.

    The number of ranks must be the same too, unless the state is `universal` (`xpt.training.elastic`).
    """
    configuration: Any = engine._config
    configuration.load_universal_checkpoint = universal
    optimizer: Any = engine.optimizer if universal else None
    groups = optimizer.param_groups if universal else []
    ours = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    with only_weights():
        loaded, client = engine.load_checkpoint(str(folder), tag="state", load_lr_scheduler_states=False)
    if universal:
        # Under ZeRO 3 DeepSpeed gives every group the settings of the first, weight decay too, and all
        # parameters one and the same tensor to count their steps in.
        for group, settings in zip(optimizer.param_groups, ours, strict=True):
            group.update(settings)
        for state in optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()
    assert loaded is not None, folder
    assert client is not None
    return client.get("beside", {})


def whole_weights(engine: Engine) -> dict[str, torch.Tensor]:
    """The model's state dict on the CPU, parameters whole; all ranks must call it, for ZeRO 3."""
    model: Any = engine.module
    is_partitioned = engine.zero_optimization_partition_weights()
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=is_partitioned):
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def readable_module(engine: Engine, make: Callable[[], nn.Module]) -> nn.Module:
    """The module to evaluate with, whatever each rank does with it: the engine's own, or under ZeRO 3 a copy
    by `make` with whole weights; all ranks must call it."""
    module: Any = engine.module
    if not engine.zero_optimization_partition_weights():
        return module
    weights = whole_weights(engine)
    copy = make()
    copy.load_state_dict(weights)
    return copy.to(engine.device, next(iter(weights.values())).dtype)


def checkpoint_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The model's float32 weights in a checkpoint of any ZeRO stage, put together from all ranks' shares."""
    chat = io.StringIO()
    with only_weights(), contextlib.redirect_stdout(chat), contextlib.redirect_stderr(chat):
        weights: Any = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="state")
    return dict(weights)


def convert_to_universal(folder: str, copy: str) -> None:
    """Write the state under `folder` to `copy` with every parameter whole. Leaves memory behind."""
    with only_weights():
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(Path(folder) / "state"),
                output_folder=str(Path(copy) / "state"),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


@contextlib.contextmanager
def only_weights() -> Iterator[None]:
    """Within, `torch.load` refuses a pickle that holds more than weights: unpickling can run any program.

    DeepSpeed asks PyTorch for whole pickles wherever it reads a checkpoint; the variable outweighs that.
    Raises ValueError for what is refused.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with torch.serialization.safe_globals(IN_CHECKPOINTS):
            yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"a file of the checkpoint holds more than weights, and was not loaded: {error}"
        ) from error
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
