"""A process that stands still says so, writes its stacks, and ends."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.xpt.conftest import start

WATCHED = """
import ctypes, logging, sys, time
from pathlib import Path
from xpt.training.watchdog import Watchdog
logging.basicConfig()
def stand_still(seconds):
    DO
with Watchdog(Path(sys.argv[1]), 3, seconds=1) as watch:
    for step in range(8):
        watch.begin(f"step {step}")
        watch.phase = "computing"
        time.sleep(0.25)
    stand_still(60)
"""


@pytest.mark.parametrize(
    ("what", "dumps"),
    [("time.sleep(seconds)", 2), ("ctypes.PyDLL(None).sleep(seconds)", 1)],
    ids=["letting other threads run", "with the interpreter's lock"],
)
def test_a_process_that_stands_still_leaves_its_stacks_and_ends(tmp_path: Path, what: str, dumps: int):
    program = [sys.executable, "-c", WATCHED.replace("DO", what), str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    stacks = (tmp_path / "stacks" / "rank-00003.txt").read_text()
    assert stacks.count("in stand_still") == dumps
    if dumps == 2:
        assert "rank 3: step 7, computing has taken 1 s" in done.stderr


def test_a_process_that_moves_leaves_nothing(tmp_path: Path):
    program = [sys.executable, "-c", WATCHED.replace("DO", "pass"), str(tmp_path)]
    assert subprocess.run(program, cwd=ROOT, timeout=30).returncode == 0
    assert list((tmp_path / "stacks").iterdir()) == []


STARTS = """
import sys, time
from pathlib import Path
from xpt.training.watchdog import Watchdog, limit_start
def load(seconds):
    time.sleep(seconds)
limit_start(1)
load(float(sys.argv[2]))
with Watchdog(Path(sys.argv[1]), 0, seconds=60):
    time.sleep(1.5)
"""


@pytest.mark.parametrize(("seconds", "status"), [(60, 1), (0, 0)])
def test_a_start_that_stands_still_ends_too(tmp_path: Path, seconds: int, status: int):
    program = [sys.executable, "-c", STARTS, str(tmp_path), str(seconds)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == status
    assert ("in load" in done.stderr) == (status == 1)


HANGS = """
import os, time
from xpt import train
class Impatient(train.Watchdog):
    def __init__(self, run, rank, seconds):
        assert seconds == 1800
        super().__init__(run, rank, seconds=8)
add = train.Interval.add_norm
def stand_still(self, step, norm):
    add(self, step, norm)
    if os.environ["RANK"] == "1" and step == 6:
        time.sleep(600)
train.Watchdog, train.Interval.add_norm = Impatient, stand_still
"""


@pytest.mark.launch
def test_a_rank_that_hangs_is_told_from_the_others(shards: Path, tmp_path: Path):
    run = start(tmp_path / "run", shards, ranks=2, sabotage=HANGS)
    assert all(status != 0 for status in run.wait()), run.output()
    hung, waiting = (Path(run.folder / "stacks" / f"rank-0000{rank}.txt").read_text() for rank in (1, 0))
    assert "in stand_still" in hung and "in stand_still" not in waiting
    assert "in all_reduce" in waiting
    assert re.search(r"rank 1: step 6, computing has taken 4 s", run.output())
    assert re.search(r"slowest rank [01]: [\d.]+ s \([\d.]+ s waiting for films\), median", run.output())
