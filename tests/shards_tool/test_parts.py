import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards_tool import make
from shards_tool.build import build, build_part
from shards_tool.output import BUILD_FOLDER
from shards_tool.verify import verify
from tests.shards_tool.archive import FILMS, INPUTS, SMALL, tree


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make, "PACK_FILMS", 2)


def options(archive: Path, key_file: Path) -> dict:
    return {"meta": [archive / "table.csv"], "key_file": key_file, "workers": 0}


@pytest.mark.parametrize("count", [1, 3])
def test_merged_parts_are_byte_for_byte_the_build_of_one_machine(
    archive: Path, key_file: Path, tmp_path: Path, count: int
):
    asked = options(archive, key_file)
    build([archive], tmp_path / "whole", SMALL, **asked)
    data = tmp_path / "data"
    parts = [build_part([archive], data, SMALL, part=(i, count), **asked) for i in range(count, 0, -1)]
    assert sum(part.inputs for part in parts) == INPUTS
    if count > 1:
        assert max(part.films for part in parts) <= FILMS
    build([archive], data, SMALL, merge=True, **asked)
    assert tree(data) == tree(tmp_path / "whole") and verify(data, workers=0).faults == []
    build([archive], data, SMALL, merge=True, **asked)  # complete already
    assert not (data / BUILD_FOLDER).exists()


def test_merging_reads_no_film_again(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = options(archive, key_file)
    for i in (1, 2):
        build_part([archive], tmp_path / "data", SMALL, part=(i, 2), **asked)
    monkeypatch.setattr("shards_tool.pack.read_film", None)
    monkeypatch.setattr("shards_tool.scan.Scanner._scan", None)
    assert build([archive], tmp_path / "data", SMALL, merge=True, **asked).samples == FILMS


class Killed(BaseException):
    """Stands for a kill."""


def test_a_killed_part_goes_on_and_is_not_merged_before(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = options(archive, key_file)
    data = tmp_path / "data"
    build_part([archive], data, SMALL, part=(1, 2), **asked)
    with pytest.raises(ValueError, match="part-002-of-002 is missing"):
        build([archive], data, SMALL, merge=True, **asked)

    def die(*_args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("shards_tool.ledger.Ledger.add_made", die)
        with pytest.raises(Killed):
            build_part([archive], data, SMALL, part=(2, 2), **asked)
    with pytest.raises(ValueError, match="part-002-of-002 is not finished"):
        build([archive], data, SMALL, merge=True, **asked)
    build_part([archive], data, SMALL, part=(2, 2), **asked)
    build([archive], data, SMALL, merge=True, **asked)
    build([archive], tmp_path / "whole", SMALL, **asked)
    assert tree(data) == tree(tmp_path / "whole")


def test_what_does_not_fit_is_refused(archive: Path, key_file: Path, tmp_path: Path):
    asked = options(archive, key_file)
    data = tmp_path / "data"
    for part in ((0, 2), (3, 2)):
        with pytest.raises(ValueError, match="wanted I/N with I from 1 to N"):
            build_part([archive], data, SMALL, part=part, **asked)
    with pytest.raises(ValueError, match="needs a key file that all parts share"):
        build_part([archive], data, SMALL, part=(1, 2), workers=0)
    with pytest.raises(ValueError, match="holds no parts to merge"):
        build([archive], data, SMALL, merge=True, **asked)
    for i in (1, 2):
        build_part([archive], data, SMALL, part=(i, 2), **asked)
    with pytest.raises(ValueError, match="give merge instead of build"):
        build([archive], data, SMALL, **asked)
    with pytest.raises(ValueError, match="quality: 95 there, 80 now"):
        build([archive], data, dataclasses.replace(SMALL, quality=80), merge=True, **asked)
    build_part([archive], data, SMALL, part=(1, 3), **asked)
    with pytest.raises(ValueError, match="parts of another job array: part-001-of-003"):
        build([archive], data, SMALL, merge=True, **asked)


def test_the_job_script_reads_shares_and_merges_them(archive: Path, key_file: Path, tmp_path: Path):
    """As Slurm would run it: one task of the array after the other, then the merging job."""
    repository = Path(__file__).parents[2]
    data = tmp_path / "data"
    command = [
        *("bash", "slurm/shard.sh", str(archive), "--out", str(data), "--key-file", str(key_file)),
        *("--side", "64", "--shard-size", "3", "--fractions", "0.6", "0.2", "0.2"),
        *("--contour", "rect"),
    ]
    venv = Path(sys.executable).parents[1]
    environment = os.environ | {"XPT_VENV": str(venv), "SLURM_CPUS_PER_TASK": "0"}

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=repository, env=environment | variables, capture_output=True, text=True
        )

    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "2", "SLURM_ARRAY_TASK_COUNT": "2"}
    for task in "12":
        done = run(**array, SLURM_ARRAY_TASK_ID=task)
        assert done.returncode == 0 and f"part {task}/2: " in done.stdout, done.stderr
    merged = run()
    assert merged.returncode == 0 and "11 files: 7 films" in merged.stdout, merged.stderr
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")
    odd = run(**array | {"SLURM_ARRAY_TASK_MIN": "2"}, SLURM_ARRAY_TASK_ID="2")
    assert odd.returncode == 2 and "the array has to be 1-N" in odd.stderr
