"""One cluster for all tests of the job scripts."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.shards_tool.conftest import archive, key_file
from tests.slurm.cluster import Cluster, missing
from tests.xpt.conftest import labelled_shards, shards

__all__ = ["archive", "key_file", "labelled_shards", "shards"]  # fixtures

REQUIRED = "XPT_REQUIRE_SLURM"
"""Set by .ci/run: where Slurm cannot run, the tests fail instead of being skipped."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    required = bool(os.environ.get(REQUIRED))
    if required and missing():
        subprocess.run([ROOT / "tests" / "slurm" / "install.sh"], check=True)
    if missing():
        assert not required, missing()
        pytest.skip(f"no Slurm here: {missing()}")
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a job writes; sbatch's `--output`."""
    return tmp_path / "job.log"
