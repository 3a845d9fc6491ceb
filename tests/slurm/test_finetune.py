"""slurm/finetune.sh under a real Slurm."""

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.test_pretrain import environment_with, wait_for
from tests.xpt.conftest import rows, start
from tests.xpt.test_finetune import TINY


@pytest.mark.launch
def test_a_cancelled_job_goes_on_to_the_result_of_an_undisturbed_one(
    cluster: Cluster, labelled_shards: Path, tmp_path: Path, log: Path
):
    flags = ["--data.path", str(labelled_shards), "--run_dir", str(tmp_path / "run"), *TINY]
    command = [
        *("--nodes", "2", "--ntasks-per-node", "1", "--cpus-per-task", "1", "--output", str(log)),
        *("slurm/finetune.sh", *flags),
    ]
    settings = {
        "XPT_VENV": environment_with(tmp_path, f'exec {sys.executable} "$@"'),
        "PYTHONPATH": str(ROOT),
    }
    job = cluster.submit(*command, **settings)
    wait_for(log, "64/512 images")
    cluster.cancel(job)
    cluster.wait_for_state(job, "CANCELLED")
    wait_for(log, "stopped after")
    assert rows(tmp_path / "run")[-1]["images"] < 512

    cluster.wait_for_state(cluster.submit(*command, **settings), "COMPLETED")
    assert "done: val/auroc" in log.read_text()
    whole = start(
        *(tmp_path / "whole", labelled_shards, "--ds_config", "ds_configs/zero2.json"),
        ranks=2,
        job="finetune",
        base=TINY,
    )
    assert whole.wait() == [0] * 2, whole.output()
    assert rows(tmp_path / "run")[-1] == rows(whole.folder)[-1]
