import pytest

from xpt.training import distributed

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURMS = ("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch):
    for name in VARIABLES + SLURMS:
        monkeypatch.delenv(name, raising=False)


def test_plain_process_is_rank_0_of_1():
    env = distributed._environment()
    assert (env["RANK"], env["WORLD_SIZE"], env["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


def test_launchers_variables_win_over_slurms(monkeypatch: pytest.MonkeyPatch):
    values = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "2",
        "MASTER_ADDR": "host",
        "MASTER_PORT": "123",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert distributed._environment() == {name: values[name] for name in VARIABLES}


def test_slurms_variables_give_the_ranks_and_the_same_port_everywhere(monkeypatch: pytest.MonkeyPatch):
    job = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "123456", "MASTER_ADDR": "host"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    seen = []
    for rank in range(4):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        monkeypatch.setenv("SLURM_LOCALID", str(rank % 2))
        seen.append(distributed._environment())
    assert [e["RANK"] for e in seen] == ["0", "1", "2", "3"]
    assert [e["LOCAL_RANK"] for e in seen] == ["0", "1", "0", "1"]
    assert {e["MASTER_PORT"] for e in seen} == {"23456"}


def test_the_shell_of_salloc_is_alone(monkeypatch: pytest.MonkeyPatch):
    shell = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}
    for name, value in (shell | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).items():
        monkeypatch.setenv(name, value)
    assert distributed._environment()["WORLD_SIZE"] == "1"


def test_the_batch_script_itself_is_no_task_of_the_job(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    assert distributed._environment()["WORLD_SIZE"] == "1"
