"""`make demo`, smaller than life."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.launch
@pytest.mark.skipif(not (ROOT / ".venv" / ".installed").exists(), reason="needs the .venv of `make install`")
def test_the_demo_ends_with_a_summary_of_what_it_made(tmp_path: Path):
    demo = tmp_path / "demo"
    demo.mkdir()
    # A fixed secret and even splits, because with few patients a split may be empty.
    (demo / "shards.key").write_text("0123456789abcdef" * 4)
    small = "--train.images 32 --train.eval-images 16 --train.log-images 16 --model.side 64"
    command = [
        *("make", "demo", f"DEMO={demo}", "DEMO_PATIENTS=8"),
        *("DEMO_SHARD_FLAGS=--fractions 0.5 0.5 0", f"DEMO_FLAGS={small}"),
        f"DEMO_TUNE_FLAGS={small} --recognition.findings 'No Finding'",
        "DEMO_EVALUATE_FLAGS=--examples 1",
        "DEMO_REPORT_EVALUATE_FLAGS=--examples 1",
        f"DEMO_REPORT_FLAGS={small} --report.longest 24 --report.select cider --train.eval-films 2",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for again in (False, True):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "no faults" in done.stdout
        assert "after 32 images" in done.stdout
        assert "32 of 32 images done" in done.stderr or not again
    assert (demo / "shards.png").exists()
    assert "val, " in done.stderr and "mean AUROC" in done.stderr
    assert (demo / "findings" / "evaluation.html").exists()
    assert "zh, written:" in done.stdout and (demo / "reports" / "evaluation.html").exists()
    assert (demo / "run" / "pictures" / "reconstruction-000000000032.png").exists()
