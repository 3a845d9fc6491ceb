import sys
from pathlib import Path

from shards_tool.build import build
from shards_tool.verify import verify
from tests.shards_tool.archive import SMALL, tree
from tests.slurm.cluster import Cluster


def test_a_job_array_and_a_merging_job_build_the_shards_of_one_machine(
    cluster: Cluster, archive: Path, key_file: Path, tmp_path: Path
):
    data = tmp_path / "data"
    options = ["--cpus-per-task", "1", "--output", str(tmp_path / "job-%A-%a.log")]
    script = [
        *("slurm/shard.sh", str(archive), "--out", str(data), "--key-file", str(key_file)),
        *("--side", "64", "--shard-size", "3", "--fractions", "0.6", "0.2", "0.2"),
        *("--contour", "rect"),
    ]
    array = cluster.submit("--array", "1-3", *options, *script, XPT_VENV=sys.prefix)
    merge = cluster.submit("--dependency", f"afterok:{array}", *options, *script, XPT_VENV=sys.prefix)
    cluster.wait_for_state(merge, "COMPLETED")
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole") and verify(data, workers=0).faults == []
