import dataclasses
from pathlib import Path

import pytest

from tests.xpt.test_saved import JOB, write
from xpt.checkpoint import _check_same_job as check_same_job
from xpt.config import Config, demo
from xpt.saved import newest


def refusal(tmp_path: Path, **changes: object) -> str:
    write(tmp_path, 10)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    with pytest.raises(ValueError) as refused:
        check_same_job(checkpoint, dataclasses.replace(JOB, **changes))
    return str(refused.value)


def with_changes(config: Config, **train: object) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


def test_another_configuration_is_refused_field_by_field(tmp_path: Path):
    message = refusal(tmp_path, config=with_changes(demo(), base_lr=1.0, seed=5, log_images=1))
    assert "train.base_lr" in message
    assert "train.seed: 0 in the checkpoint, 5 now" in message
    assert "log_images" not in message
    assert "--allow_config_change" in message


def test_another_configuration_is_taken_where_asked_for(tmp_path: Path):
    write(tmp_path, 10)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    config = dataclasses.replace(with_changes(demo(), base_lr=1.0), allow_config_change=True)
    check_same_job(checkpoint, dataclasses.replace(JOB, config=config))


def test_another_data_set_is_refused(tmp_path: Path):
    assert "data set: manifest 000000000000" in refusal(tmp_path, data_hash="f" * 64)


@pytest.mark.parametrize("field", ["world_size", "zero_stage"])
def test_other_ranks_or_stage_are_refused_even_where_changes_are_allowed(tmp_path: Path, field: str):
    config = dataclasses.replace(demo(), allow_config_change=True)
    assert f"{field} 2 in the checkpoint, 3 now" in refusal(tmp_path, config=config, **{field: 3})
