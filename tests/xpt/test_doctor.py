"""The report before a run."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from xpt import doctor
from xpt.doctor import examine, parse
from xpt.training.environment import Check

MACHINE = ["--device", "H100", "--ranks", "8", "--ds_config", "ds_configs/zero2.json"]


@pytest.fixture(autouse=True)
def no_trials_of_tools(monkeypatch: pytest.MonkeyPatch):
    """Those have their own tests, and take half a minute."""
    works = [Check(name="PyTorch", state="works", version="2", said="a matrix")]
    monkeypatch.setattr(doctor, "check_environment", lambda: works)


def report(*flags: str, folder: Path) -> tuple[int, str]:
    """(exit status, everything printed)."""
    out = io.StringIO()
    status = examine(
        parse([*flags, "--run_dir", str(folder / "new/run")]), Console(file=out, width=200, highlight=False)
    )
    return status, out.getvalue()


def test_a_plan_for_a_cluster_is_answered_in_numbers(shards: Path, tmp_path: Path):
    flags = ("--preset", "vit_l_1280", *MACHINE, "--model.side", "96", "--data.path", str(shards))
    status, said = report(*flags, "--json", str(tmp_path / "report.json"), folder=tmp_path)
    assert status == 0
    manifest = json.loads((shards / "manifest.json").read_bytes())["splits"]["train"]
    assert f"train: {manifest['samples']} films in {len(manifest['shards'])} shards" in said
    for wanted in (
        "largest micro-batch",
        "TFLOP per image",
        "images/s (35% of 8 x 989",
        "days",
        "MB/s to read",
    ):
        assert wanted in said
    content = json.loads((tmp_path / "report.json").read_text())
    estimate = content["estimate"]
    assert f"{estimate['parameters'] / 1e6:.1f} M" in said
    assert estimate["parameters"] == pytest.approx(328e6, rel=0.01)
    assert content["storage"]["film_source"] == "mean of those read"
    assert not (tmp_path / "new").exists()  # asking leaves nothing behind


def test_the_default_is_this_machine_and_a_cpu_is_warned_of(tmp_path: Path):
    status, said = report("--preset", "demo", "--images-per-second", "50", folder=tmp_path)
    assert status == 0
    assert "demo, ZeRO 1, 1 x CPU, fp32" in said and "50 images/s (stated)" in said
    assert "There is no GPU here" in said and "none given: set --data.path" in said


def test_what_is_wrong_with_the_shards_is_said(shards: Path, tmp_path: Path):
    status, said = report("--preset", "demo", "--data.path", str(tmp_path / "nowhere"), folder=tmp_path)
    assert status == 1 and "no such folder" in said
    status, said = report("--preset", "demo", "--data.path", str(shards), folder=tmp_path)
    assert status == 1 and "build shards with --side 224, or set --model.side 96" in said


def test_a_broken_tool_and_a_model_that_does_not_fit_end_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    status, said = report(*MACHINE, "--device_gb", "10", folder=tmp_path)
    assert status == 1 and "A step needs" in said and "Set --train.micro_batch" in said
    needed = re.search(r"A step needs ([\d.]+) GB", said)
    assert needed is not None
    # Enough for the step, not for what no estimate covers.
    status, said = report(*MACHINE, "--device_gb", str(float(needed[1]) + 1), folder=tmp_path)
    assert status == 1 and "A step needs" in said
    broken = [Check(name="DALI", state="broken", said="no decoder", remedy="make install")]
    monkeypatch.setattr(doctor, "check_environment", lambda: broken)
    status, said = report(*MACHINE, folder=tmp_path)
    assert status == 1 and "DALI is broken: no decoder. make install" in said


def test_flags_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    with pytest.raises(ValueError, match="cannot be shared equally by 7 ranks"):
        report(*MACHINE, "--ranks", "7", folder=tmp_path)
    monkeypatch.setattr("sys.argv", ["xpt-doctor", "--device", "TPU"])
    with pytest.raises(SystemExit) as ended:
        doctor.main()
    assert ended.value.code == 2
    assert "--device TPU: not known. There are: A100" in capsys.readouterr().err
