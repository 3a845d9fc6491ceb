"""`make docs` finds nothing to warn about."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_the_api_reference_is_made_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "pdoc", "xpt", "kernels", "shards_tool", "--output-directory", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    page = (tmp_path / "xpt" / "tasks" / "generation.html").read_text()
    assert "batched beam search" in page and "beam_search" in page
