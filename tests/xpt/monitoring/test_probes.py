"""The queue of a run's probes: their order, and what becomes of one that goes wrong."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.xpt.conftest import rows
from xpt.evaluation import frozen_probe
from xpt.evaluation.frozen_probe import Question
from xpt.monitoring.probes import Probes, forget_after
from xpt.training.telemetry import RunLog

LONG = 600.0
RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((24, 4)).astype(np.float16)
QUESTION = Question(
    findings=("Spot",),
    target_NC=np.arange(24.0)[:, None] % 2,
    target_QC=np.arange(24.0)[:, None] % 2,
    patients=[f"p{n}" for n in range(24)],
)


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., Probes]:
    """Probes of the given numbers of images that wait for their turn."""

    def make(*images: int) -> Probes:
        probes = Probes(tmp_path / "evidence", RunLog(tmp_path, 0), 0)
        for number in images:
            probes.ask(QUESTION, FEATURES, FEATURES, number)
        return probes

    return make


def published(run: Path) -> list[int]:
    return [row["images"] for row in rows(run) if "probe/knn_value" in row]


def test_one_that_goes_wrong_is_told_and_does_not_hold_up_the_others(
    asked: Callable[..., Probes], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    probes, folder = asked(0, 8, 16, 24, 48, 96), tmp_path / "evidence"
    for images, damage in enumerate(("{", "[]", "{}", json.dumps({"mean": {}, "findings": {}}))):
        (folder / f"probe-{8 * images:012d}.json").write_text(damage)
    (folder / "features-000000000048.npz").write_bytes(b"no archive")
    probes.wait(LONG)
    assert published(tmp_path) == [96]
    assert caplog.text.count("this probe is left out") == 4
    assert caplog.text.count("a probe failed; its last words are in") == 1
    assert "Error" in (folder / "probe-000000000048.log").read_text()
    assert not list(folder.glob("features-*"))


def test_one_that_takes_too_long_is_ended_and_keeps_its_features(
    asked: Callable[..., Probes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/bash\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    started = []
    start = frozen_probe.start
    monkeypatch.setattr(frozen_probe, "start", lambda *paths: started.append(start(*paths)) or started[-1])
    probes = asked(0, 8)
    probes.wait(0.3)
    assert [process.wait(10) for process in started] == [-9]
    assert len(list((tmp_path / "evidence").glob("features-*"))) == 2


def test_a_resumed_run_forgets_later_evidence_and_half_written_files(tmp_path: Path):
    """Their names are those that `write_atomically` gives."""
    kept = ["features-000000000048.npz", "probe-000000000024.json", "probe-000000000048.log"]
    later = ["features-000000000096.npz", "probe-000000000096.json"]
    torn = [".features-000000000048.npz.0a1b2c3d.tmp", ".probe-000000000024.json.4e5f6a7b.tmp"]
    for name in kept + later + torn:
        (tmp_path / name).touch()
    forget_after(tmp_path, 48)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    forget_after(tmp_path, 0)
    assert not list(tmp_path.iterdir())
