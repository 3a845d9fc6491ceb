import dataclasses
import hashlib
import json
import logging
from pathlib import Path

import pytest

from xpt.checkpoint import DESCRIPTION, Job, newest
from xpt.checkpoint import _check_same_job as check_same_job
from xpt.checkpoint import _sealed as sealed
from xpt.config import Config, demo

JOB = Job(config=demo(), data_hash="0" * 64, world_size=2, zero_stage=2)


def write(run: Path, images: int, job: Job = JOB) -> Path:
    folder = run / "checkpoints" / f"images-{images:012d}"
    (folder / "state").mkdir(parents=True)
    content = f"weights after {images}".encode()
    (folder / "state" / "model.pt").write_bytes(content)
    description = {
        "images": images,
        "config": dataclasses.asdict(job.config),
        "data_hash": job.data_hash,
        "world_size": job.world_size,
        "zero_stage": job.zero_stage,
        "files": {"state/model.pt": hashlib.sha256(content).hexdigest()},
    }
    (folder / DESCRIPTION).write_text(json.dumps(sealed(json.loads(json.dumps(description)))))
    return folder


def test_a_new_run_has_none(tmp_path: Path):
    assert newest(tmp_path) is None


def test_the_newest_is_taken(tmp_path: Path):
    for images in (900, 1_000_000, 10_000):
        write(tmp_path, images)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images == 1_000_000


def test_one_that_was_being_written_is_not_seen(tmp_path: Path):
    write(tmp_path, 10)
    write(tmp_path, 20).rename(tmp_path / "checkpoints" / ".images-000000000020.tmp")
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images == 10


def flip_byte(folder: Path):
    path = folder / "state" / "model.pt"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped byte": flip_byte,
    "truncated file": lambda f: (f / "state" / "model.pt").write_bytes(b"w"),
    "missing file": lambda f: (f / "state" / "model.pt").unlink(),
    "missing description": lambda f: (f / DESCRIPTION).unlink(),
    "half a description": lambda f: (f / DESCRIPTION).write_text('{"images": 20'),
    "description of another kind": lambda f: (f / DESCRIPTION).write_text("[1]"),
    "changed description": lambda f: (f / DESCRIPTION).write_text(
        (f / DESCRIPTION).read_text().replace('"images": 20', '"images": 21')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    write(tmp_path, 10)
    DAMAGE[damage](write(tmp_path, 20))
    with caplog.at_level(logging.WARNING):
        checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.images == 10
    assert "images-000000000020 is damaged" in caplog.text
    # It no longer stands where training will write its own after 20 images.
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["damaged-images-000000000020", "images-000000000010"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(tmp_path: Path):
    for images in (10, 20):
        flip_byte(write(tmp_path, images))
    with pytest.raises(ValueError, match=r"none of 2 checkpoints is intact.*move the folder away"):
        newest(tmp_path)


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
