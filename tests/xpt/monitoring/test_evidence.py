"""Evidence during a run of two ranks: what it leaves, that nobody waits for it, that training is the same."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.browser import look_at
from tests.xpt.conftest import rows, start, trace

pytestmark = pytest.mark.launch
FLAGS = ["--ds_config", "ds_configs/zero2.json"]


@pytest.fixture(scope="module")
def probed(labelled_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose probes begin only when its last step has been made."""
    folder = tmp_path_factory.mktemp("probed") / "run"
    patient = folder.with_name("patient-python")
    metrics = shlex.quote(str(folder / "metrics.jsonl"))
    patient.write_text(
        f'#!/bin/bash\nuntil grep -q \'"images": 96, "loss"\' {metrics}; do sleep 0.1; done\n'
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    patient.chmod(0o755)
    sabotage = f"import sys; sys.executable = {str(patient)!r}"
    run = start(folder, labelled_shards, *FLAGS, ranks=2, sabotage=sabotage)
    assert run.wait() == [0, 0], run.output()
    return run.folder


def test_probes_measure_what_features_know_without_holding_up_the_run(probed: Path):
    found = [row for row in rows(probed) if "probe/logistic_value" in row]
    assert [row["images"] for row in found] == [0, 48, 96]
    for row in found:
        assert row["probe/logistic_low"] <= row["probe/logistic_value"] <= row["probe/logistic_high"]
        assert row["probe/logistic_value"] > 0.8  # a bright and a dark square at a known height
    newest = json.loads((probed / "evidence" / "probe-000000000096.json").read_text())
    assert set(newest["findings"]) == {"Spot", "Bar"}
    assert newest["films"]["val"] > 10
    assert not list((probed / "evidence").glob("features-*"))
    board = EventAccumulator(str(probed))
    board.Reload()
    assert [event.step for event in board.Scalars("probe/knn_value")] == [0, 48, 96]


def test_evidence_does_not_change_training(labelled_shards: Path, probed: Path, tmp_path: Path):
    run = start(tmp_path / "run", labelled_shards, *FLAGS, "--train.eval-images", "0", ranks=2)
    assert run.wait() == [0, 0], run.output()
    with_evidence = [row for row in trace(probed) if "loss" in row]
    assert len(with_evidence) == 12
    assert trace(run.folder) == with_evidence


def test_the_page_of_a_run_shows_everything_in_a_browser(probed: Path, tmp_path: Path):
    seen = look_at(probed / "report.html", tmp_path)
    assert seen["title"] == "run: 96 of 96 images (100%)"
    assert {"Is it learning?", "Is it fast?", "Is anything wrong?"} <= set(seen["headings"])
    for words in (
        "Validation loss 0.",
        "images/s",
        "Nothing that was noticed.",
        "Frozen features tell",
        "Spot",
    ):
        assert words in seen["text"]
    assert len(seen["pictures"]) == 3
    assert all(width == 3 * 64 and height > 64 for width, height in seen["pictures"])
    assert len(seen["charts"]) == 10
    assert all(width > 100 and height > 100 for width, height in seen["charts"])
    assert len(seen["lines"]) == 3 + 2 + 1 + 2 + 4 + 1 + 4
    assert all(length > 100 for length in seen["lines"])
    assert seen["outside"] == []
    assert seen["requests"] == []
    assert seen["overflow"] <= 0
