import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch import nn

from tests.conftest import ROOT
from xpt.config import Config, ModelConfig, TrainConfig
from xpt.models.init import read_saved
from xpt.training.engine import (
    OWNED_BY_CONFIG,
    Engine,
    checkpoint_weights,
    convert_to_universal,
    forget_steps,
    load_state,
    read_ds_config,
    resolved,
    zero_stage,
)


@pytest.mark.parametrize(("name", "stage"), [("zero1", 1), ("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_shipped_ds_configs_are_accepted(name: str, stage: int):
    assert zero_stage(read_ds_config(str(ROOT / "ds_configs" / f"{name}.json"))) == stage


def test_without_a_ds_config_it_is_zero_1():
    assert zero_stage(read_ds_config("")) == 1


@pytest.mark.parametrize("name", OWNED_BY_CONFIG)
def test_a_ds_config_that_sets_what_ours_owns_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, name: 1}))
    with pytest.raises(ValueError, match=rf"{name} \(set --train"):
        read_ds_config(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "got a list, wanted a JSON object"),
        ("{}", "zero_optimization: got None, wanted an object with stage 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 0}}', "wanted an object with stage 1, 2 or 3"),
        ('{"zero_optimisation": {"stage": 3}}', r"zero_optimisation. Did you mean zero_optimization\?"),
    ],
)
def test_a_malformed_ds_config_is_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "ds.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_ds_config(str(path))


def test_a_missing_ds_config_is_named():
    with pytest.raises(ValueError, match=r"--ds_config nowhere.json: No such file.*ds_configs/zero1.json"):
        read_ds_config("nowhere.json")


def test_precision_follows_the_device_only_where_it_is_left_open():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolved(Config(), cpu).train.precision == "fp32"
    assert resolved(Config(), gpu).train.precision == "bf16"
    fixed = Config(train=TrainConfig(precision="fp32"))
    assert resolved(fixed, gpu).train.precision == "fp32"


def test_flash_attention_is_refused_where_it_cannot_run():
    config = Config(model=ModelConfig(attention="flash_attn"))
    with pytest.raises(ValueError, match="got fp32 on cpu"):
        resolved(config, torch.device("cpu"))
    assert resolved(config, torch.device("cuda")).model.attention == "flash_attn"


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


class Reading(Engine):
    """Of DeepSpeed's engine only what reads a file."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self._config = SimpleNamespace()

    def load_checkpoint(self, load_dir, tag=None, *_, **__):
        return "", TorchCheckpointEngine(None).load(f"{load_dir}/{tag}/mp_rank_00_model_states.pt")


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: load_state(Reading(), folder),
        checkpoint_weights,
        lambda folder: convert_to_universal(str(folder), str(folder / "copy")),
        lambda folder: read_saved(folder / "state" / "mp_rank_00_model_states.pt"),
    ],
    ids=["resume", "export", "another number of ranks", "--init"],
)
def test_a_checkpoint_that_would_run_a_program_is_refused(load, tmp_path: Path):
    (tmp_path / "state").mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"module": {}, "evil": Evil(tmp_path / "mark")}, tmp_path / "state" / name)
    with pytest.raises(ValueError, match=r"more than weights|no file of weights"):
        load(tmp_path)
    assert not (tmp_path / "mark").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark")))  # the trap works
    assert (tmp_path / "mark").exists()


@pytest.mark.launch  # compiles DeepSpeed's Adam where that was not done before
def test_the_offloaded_optimizer_goes_on_bit_identically_from_every_step():
    torch.manual_seed(0)
    gradients_SN = torch.randn(40, 64)

    def optimizer_on(weights_N: torch.Tensor) -> DeepSpeedCPUAdam:
        return DeepSpeedCPUAdam([nn.Parameter(weights_N)], lr=0.1, betas=(0.9, 0.95), adamw_mode=True)

    def step(optimizer: DeepSpeedCPUAdam, gradient_N: torch.Tensor) -> torch.Tensor:
        (weights,) = optimizer.param_groups[0]["params"]
        weights.grad = gradient_N.clone()
        forget_steps(optimizer)
        optimizer.step()
        return weights.detach().clone()

    whole = optimizer_on(torch.zeros(64))
    for gradient_N in gradients_SN:
        (weights,) = whole.param_groups[0]["params"]
        resumed = optimizer_on(weights.detach().clone())
        resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        assert torch.equal(step(whole, gradient_N), step(resumed, gradient_N))
