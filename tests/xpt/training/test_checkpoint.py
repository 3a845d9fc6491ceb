import dataclasses
import errno
import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.xpt.conftest import start
from tests.xpt.training.test_saved import JOB, write
from xpt.config import Config, demo
from xpt.training import checkpoint, distributed
from xpt.training.checkpoint import Checkpoints
from xpt.training.checkpoint import _check_same_job as check_same_job
from xpt.training.engine import Engine
from xpt.training.saved import newest


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkpoints]:
    """Of a run in `tmp_path` on this process alone, whose engine writes one file."""

    def write_state(engine: object, folder: Path, beside: object) -> list[Path]:
        path = folder / "state" / "model.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
        (path.parent / "script.py").write_text("added")
        return [path]

    monkeypatch.setattr(checkpoint, "save_state", write_state)
    distributed.start()
    yield Checkpoints(tmp_path, Mock(spec=Engine), JOB, parameters=1)
    distributed.stop()


def newest_images(run: Path) -> int | None:
    found = newest(run)
    return found and found.images


def test_training_goes_on_while_a_checkpoint_is_hashed_and_it_exists_once_complete(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    may_go_on, sync_and_hash = threading.Event(), checkpoint._sync_and_hash

    def held(path: Path) -> str:
        assert may_go_on.wait(60)
        return sync_and_hash(path)

    monkeypatch.setattr(checkpoint, "_sync_and_hash", held)
    checkpoints.begin(8)
    assert newest_images(tmp_path) is None
    may_go_on.set()
    checkpoints.begin(16)  # completes the one before
    assert newest_images(tmp_path) == 8
    checkpoints.complete()
    assert newest_images(tmp_path) == 16
    found = newest(tmp_path)
    assert found is not None
    assert set(found.description["files"]) == {"state/model.pt", "state/script.py"}
    assert [p.name for p in found.folder.parent.glob(".*")] == []


def test_a_file_that_does_not_reach_the_disk_behind_training_stops_it_and_leaves_the_one_before(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    checkpoints.begin(8)
    checkpoints.complete()
    monkeypatch.setattr(checkpoint, "_sync_and_hash", full)
    checkpoints.begin(16)
    with pytest.raises(OSError, match=r"did not reach the disk .*No space left.* goes on from the last"):
        checkpoints.complete()
    assert newest_images(tmp_path) == 8


def test_a_file_that_the_first_rank_does_not_see_is_no_part_of_a_checkpoint(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where the run folder is on a disk of each node."""
    both = [{"state/model.pt": "0" * 64}, {"state/of-rank-1.pt": "0" * 64}]
    monkeypatch.setattr(checkpoint, "gather_on_first", lambda digests: both)
    monkeypatch.setattr(checkpoint, "LONGEST_UNSEEN", 0.0)
    checkpoints.begin(8)
    with pytest.raises(OSError, match=r"of-rank-1.pt: another rank wrote it.*--run_dir has to be on a file"):
        checkpoints.complete()
    assert newest_images(tmp_path) is None


@pytest.mark.launch
@pytest.mark.parametrize("stage", [2, 3])
def test_each_rank_hashes_what_it_wrote(shards: Path, tmp_path: Path, stage: int):
    sabotage = f"""
import os
from xpt.training import checkpoint
sync_and_hash = checkpoint._sync_and_hash
def noted(path):
    with open({str(tmp_path / "hashed")!r}, "a") as file:
        file.write(os.environ["RANK"] + " " + path.name + "\\n")
    return sync_and_hash(path)
checkpoint._sync_and_hash = noted
"""
    flags = [
        "--ds_config",
        f"ds_configs/zero{stage}.json",
        "--train.images",
        "16",
        "--train.eval-images",
        "0",
    ]
    run = start(tmp_path / "run", shards, *flags, ranks=2, sabotage=sabotage)
    assert run.wait() == [0, 0], run.output()
    by_rank = defaultdict(list)
    for line in (tmp_path / "hashed").read_text().splitlines():
        rank, name = line.split()
        by_rank[rank].append(name)
    shares = {rank: sorted(n for n in names if n.endswith(".pt")) for rank, names in by_rank.items()}
    optimizer = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    model = {2: ["mp_rank_00_model_states.pt"], 3: ["zero_pp_rank_0_mp_rank_00_model_states.pt"]}[stage]
    assert shares["0"] == sorted([*model, optimizer.format(0)])
    assert shares["1"] == sorted(
        [*(n.replace("rank_0_", "rank_1_") for n in model if stage == 3), optimizer.format(1)]
    )
    found = newest(tmp_path / "run")
    assert found is not None
    assert sorted(Path(n).name for n in found.description["files"]) == sorted(
        itertools.chain(*by_rank.values())
    )


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
