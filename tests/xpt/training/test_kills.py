"""Runs that are killed at random moments, also while they write a checkpoint, end as undisturbed ones do."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.xpt.conftest import start, trace

pytestmark = pytest.mark.launch
SOAK_KILLS = int(os.environ.get("XPT_SOAK_KILLS", "50"))
"""Of each combination, in the long form."""


def survive(shards: Path, folder: Path, *, ranks: int, ds: str, kills: int) -> None:
    # A checkpoint at every step, so that kills come while one is written, too. On one rank a step has four
    # forward passes, on two ranks two.
    flags = ["--ds_config", f"ds_configs/{ds}.json", "--train.checkpoint-images", "8"]
    if "offload" in ds:  # the first such run compiles for minutes, which no later one does
        assert start(folder / "first", shards, *flags, ranks=ranks).wait() == [0] * ranks
    started = time.monotonic()
    whole = start(folder / "whole", shards, *flags, ranks=ranks)
    assert whole.wait() == [0] * ranks, whole.output()
    length = time.monotonic() - started

    rng = random.Random(f"{ds} {ranks}")
    killed = torn = 0
    while killed < kills:
        run = start(folder / "killed", shards, *flags, ranks=ranks)
        time.sleep(rng.uniform(0, length))
        run.send(signal.SIGKILL)
        if run.wait() == [0] * ranks:  # it was done before: once more from the beginning
            assert trace(folder / "killed") == trace(folder / "whole")
            shutil.rmtree(folder / "killed")
        else:
            killed += 1
            torn += any((folder / "killed" / "checkpoints").glob(".images-*.tmp"))
    last = start(folder / "killed", shards, *flags, ranks=ranks)
    assert last.wait() == [0] * ranks, last.output()
    assert trace(folder / "killed") == trace(folder / "whole")
    print(f"{ds}, {ranks} ranks: {killed} kills, {torn} of them before a checkpoint was complete")


@pytest.mark.parametrize(("ranks", "ds"), [(1, "zero1"), (2, "zero3")])
def test_a_few_kills(shards: Path, tmp_path: Path, ranks: int, ds: str):
    survive(shards, tmp_path, ranks=ranks, ds=ds, kills=4)


@pytest.mark.soak
@pytest.mark.parametrize("ds", ["zero1", "zero2", "zero3", "zero3_offload"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_many_kills(shards: Path, tmp_path: Path, ranks: int, ds: str):
    survive(shards, tmp_path, ranks=ranks, ds=ds, kills=SOAK_KILLS)
