"""slurm/pretrain.sh under a real Slurm: time limits, deaths, cancelling, the cap on restarts."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster
from tests.xpt.conftest import TINY, rows, start, trace

pytestmark = pytest.mark.launch
SCRIPT = "slurm/pretrain.sh"


def environment_with(folder: Path, program: str) -> str:
    """A stand-in for the virtual environment whose python runs `program`, a line of shell, as a task."""
    (folder / "venv" / "bin").mkdir(parents=True)
    python = folder / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/bash\n[[ $1 == -c ]] && exec {sys.executable} "$@"\n{program}\n')
    python.chmod(0o755)
    return str(folder / "venv")


def holding(folder: Path, events: str) -> dict[str, str]:
    """The environment of a job that meets `events` (see held.py)."""
    (folder / "marks").mkdir()
    return {
        "XPT_VENV": environment_with(folder, f'exec {sys.executable} {ROOT}/tests/slurm/held.py "$@"'),
        "PYTHONPATH": str(ROOT),
        "HELD": events,
        "HELD_MARKS": str(folder / "marks"),
    }


def flags(shards: Path, run: Path) -> list[str]:
    return ["--data.path", str(shards), "--run_dir", str(run), *TINY]


def test_two_time_limits_and_a_killed_rank_leave_the_trace_of_an_undisturbed_run(
    cluster: Cluster, shards: Path, tmp_path: Path, log: Path
):
    """Two nodes x two ranks. Once the run waits for it, its time limit is moved near."""
    job = cluster.submit(
        *("--nodes", "2", "--ntasks-per-node", "2", "--cpus-per-task", "1", "--output", str(log)),
        *("--time", "30", "--signal", "B:USR2@90", SCRIPT, *flags(shards, tmp_path / "run")),
        **holding(tmp_path, "limit,kill,limit"),
    )
    for event, restarts in (("0", 1), ("2", 3)):
        wait_until((tmp_path / "marks" / event).exists, log)
        cluster.end_soon(job)
        cluster.wait_for_restart(job, restarts)
        cluster.limit_time(job, 30)
    cluster.wait_for_state(job, "COMPLETED")
    said = log.read_text()
    assert said.count("the time limit is near") == said.count("stopped after") == 2, said
    assert cluster.job(job)["Restarts"] == "3"
    died = re.search(r"kill at ([\d.]+)", said)
    ended = re.search(r"ended with status 137 at ([\d.]+)", said)
    assert died and ended, said
    assert float(ended[1]) - float(died[1]) < 60

    whole = start(tmp_path / "whole", shards, "--ds_config", "ds_configs/zero2.json", ranks=4)
    assert whole.wait() == [0] * 4, whole.output()
    assert trace(tmp_path / "run") == trace(whole.folder)


def test_scancel_saves_and_the_same_command_goes_on(
    cluster: Cluster, shards: Path, tmp_path: Path, log: Path
):
    settings = holding(tmp_path, "limit")
    command = ["--cpus-per-task", "1", "--output", str(log), SCRIPT, *flags(shards, tmp_path / "run")]
    job = cluster.submit(*command, **settings)
    wait_for(log, "limit at")
    cluster.cancel(job)
    cluster.wait_for_state(job, "CANCELLED")
    wait_for(log, "as told")
    assert cluster.job(job)["Restarts"] == "0"
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "images-000000000032\n"

    cluster.wait_for_state(cluster.submit(*command, **settings), "COMPLETED")
    assert "32 of 96 images done" in log.read_text()
    assert rows(tmp_path / "run")[-1]["images"] == 96


@pytest.mark.parametrize("partition", ["all", "hasty"])
def test_a_preempted_job_saves_makes_room_and_goes_on_bit_identically(
    cluster: Cluster, shards: Path, tmp_path: Path, log: Path, partition: str
):
    """With a minute's notice, where the script puts the job back itself, and with KillWait only."""
    job = cluster.submit(
        *("--nodes", "2", "--ntasks-per-node", "1", "--cpus-per-task", "1", "--output", str(log)),
        *("--partition", partition, SCRIPT, *flags(shards, tmp_path / "run")),
        **holding(tmp_path, "limit"),
    )
    wait_for(log, "limit at")
    urgent = cluster.submit(
        *("--partition", "urgent", "--nodes", "2", "--exclusive", "--output", str(tmp_path / "urgent.log")),
        *("--wrap", "sleep 2"),
    )
    cluster.wait_for_state(urgent, "COMPLETED")
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.job(job)["Restarts"] == "1"
    said = log.read_text()
    assert "32 of 96 images done" in said, said

    whole = start(tmp_path / "whole", shards, "--ds_config", "ds_configs/zero2.json", ranks=2)
    assert whole.wait() == [0] * 2, whole.output()
    assert trace(tmp_path / "run") == trace(whole.folder)


@pytest.mark.parametrize(("status", "starts"), [(1, 3), (2, 1)], ids=["a crash", "a refusal"])
def test_a_crash_is_tried_again_up_to_the_cap_and_a_refusal_is_not(
    cluster: Cluster, tmp_path: Path, log: Path, status: int, starts: int
):
    job = cluster.submit(
        *("--cpus-per-task", "1", "--output", str(log), SCRIPT),
        XPT_VENV=environment_with(tmp_path, f"echo started; exit {status}"),
        XPT_MAX_RESTARTS="2",
    )
    assert cluster.wait_for_state(job, "FAILED")["ExitCode"] == f"{status}:0"
    assert log.read_text().count("started") == starts


def wait_for(log: Path, words: str) -> None:
    wait_until(lambda: log.exists() and words in log.read_text(), log)


def wait_until(is_true: Callable[[], bool], log: Path, timeout: float = 240) -> None:
    end = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < end, log.read_text() if log.exists() else "the job wrote nothing"
        time.sleep(0.1)
