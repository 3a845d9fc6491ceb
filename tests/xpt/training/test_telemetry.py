import json
from pathlib import Path

import pytest

from xpt.config import demo
from xpt.summary import summary
from xpt.training import telemetry
from xpt.training.telemetry import Pace, RunLog, write_provenance


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_wrote_past_its_checkpoint_is_dropped(tmp_path: Path):
    log = RunLog(tmp_path, 0)
    for images in (0, 8, 16, 24):
        log.scalars(images, {"loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as f:
        f.write('{"images": 32, "lo')  # killed while writing
    RunLog(tmp_path, 16).close()
    assert [row["images"] for row in lines(tmp_path)] == [0, 8, 16]


def test_a_run_without_checkpoint_starts_its_metrics_anew(tmp_path: Path):
    log = RunLog(tmp_path, 0)
    log.scalars(0, {"val/loss": 1.0})
    log.close()
    again = RunLog(tmp_path, 0)
    again.scalars(0, {"val/loss": 1.0})
    again.close()
    assert len(lines(tmp_path)) == 1


def test_provenance_of_the_start_is_kept_when_a_run_goes_on(tmp_path: Path):
    write_provenance(tmp_path, demo(), {}, 0)
    write_provenance(tmp_path, demo(), {}, 800)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "config-000000000800.json"}
    assert json.loads((tmp_path / "config.json").read_text())["versions"]["torch"]


def test_pace_leaves_out_what_is_no_training(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now)
    pace = Pace(0, 1000)
    now = 10.0
    assert pace.measure(100) == (10.0, "0:01:30")
    now = 20.0  # a validation
    pace.start_interval(100)
    now = 30.0
    assert pace.measure(300) == (20.0, "0:01:10")


def test_summary_compares_with_the_start_and_with_patch_means(tmp_path: Path):
    log = RunLog(tmp_path, 0)
    log.scalars(0, {"val/loss": 2.0, "val/patch_mean": 0.5})
    log.scalars(800, {"val/loss": 0.25, "val/patch_mean": 0.5})
    log.close()
    (tmp_path / "pictures" / "reconstruction-000000000800.png").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("images-000000000800\n")
    text = summary(tmp_path)
    for part in (
        "after 800 images",
        "2.0000  before",
        "0.5000  of knowing",
        "0.2500  now",
        "reconstruction-0",
    ):
        assert part in text


def test_summary_of_a_run_without_validation_says_what_to_do(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no validation in its metrics; train it first"):
        summary(tmp_path)
