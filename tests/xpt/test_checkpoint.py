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


def test_another_stage_is_refused_with_the_remedy_even_where_changes_are_allowed(tmp_path: Path):
    config = dataclasses.replace(demo(), allow_config_change=True)
    message = refusal(tmp_path, config=config, zero_stage=3)
    assert "written under ZeRO 2, now ZeRO 3" in message
    assert "--ds_config of the stage that wrote it" in message


def test_another_number_of_ranks_is_welcome(tmp_path: Path):
    write(tmp_path, 10)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    check_same_job(checkpoint, dataclasses.replace(JOB, world_size=3))
