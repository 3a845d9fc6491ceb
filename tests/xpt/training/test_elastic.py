"""Runs that go on with another number of ranks."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.xpt.conftest import start, trace
from xpt import train
from xpt.data.index import open_shards
from xpt.data.order import SampleOrder
from xpt.training import elastic

pytestmark = pytest.mark.launch
STEPS, BATCH = 12, 8

# Each start notes the films it has used, and is told to stop in its second step.
NOTED = """
import os, signal
from xpt import train
add, steps = train.Interval.add_losses, []
def note(self, step, keys, loss_B):
    with open("LOG", "a") as f:
        f.write(" ".join([str(step), *keys]) + "\\n")
    if step not in steps:
        steps.append(step)
        if STOPS and len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    add(self, step, keys, loss_B)
train.Interval.add_losses = note
"""


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.soak), 2, 3])
def test_one_two_four_and_two_ranks_in_turn_train_as_one_does(
    shards: Path, tmp_path: Path, undisturbed: Path, stage: int
):
    folder, used = tmp_path / "run", tmp_path / "films"
    noted = NOTED.replace("LOG", str(used))
    flags = ["--ds_config", f"ds_configs/zero{stage}.json"]
    for ranks in (1, 2, 4):
        run = start(folder, shards, *flags, ranks=ranks, sabotage=noted.replace("STOPS", "True"))
        assert run.wait() == [train.TOLD_TO_STOP] * ranks, run.output()
    run = start(folder, shards, *flags, ranks=2, sabotage=noted.replace("STOPS", "False"))
    assert run.wait() == [0, 0], run.output()
    assert "1 ranks wrote it, 2 go on" in run.output()
    assert "4 ranks wrote it, 2 go on" in run.output()

    for ours, theirs in zip(trace(folder), trace(undisturbed), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert films_by_step(used) == planned(shards)
    assert not list((folder / "checkpoints").glob(".*"))


def films_by_step(used: Path) -> dict[int, list[str]]:
    films = defaultdict(list)
    for line in used.read_text().splitlines():
        step, *keys = line.split()
        films[int(step)] += keys
    return {step: sorted(keys) for step, keys in films.items()}


def planned(shards: Path) -> dict[int, list[str]]:
    """The films of every step as the order has them, whoever reads them."""
    data = open_shards(shards, "train")
    located = SampleOrder(data.shard_sizes, seed=0, window=32).locate(np.arange(STEPS * BATCH))
    rows = data.row_starts[located.shard_N] + located.index_N
    keys = data.rows["key"][rows].astype(str).tolist()
    return {step: sorted(keys[step * BATCH : (step + 1) * BATCH]) for step in range(STEPS)}


def test_a_checkpoint_that_cannot_be_converted_says_so_and_leaves_nothing(tmp_path: Path):
    checkpoint = tmp_path / "images-000000000024"
    (checkpoint / "state").mkdir(parents=True)
    with pytest.raises(OSError, match="Start with the number that wrote it"):
        elastic.universal_copy(checkpoint)
    assert list(tmp_path.iterdir()) == [checkpoint]
