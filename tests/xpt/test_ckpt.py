from pathlib import Path

import pytest

from tests.xpt.training.test_saved import flip_byte, write
from xpt import ckpt


def call(caplog: pytest.LogCaptureFixture, *arguments: str) -> tuple[int, str]:
    """(exit status, what it said)"""
    caplog.clear()
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
        ckpt.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code, caplog.text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for images, val_loss in ((10, 0.2), (20, None), (30, 0.3), (40, None)):
        write(tmp_path, images, val_loss=val_loss)
    return tmp_path


def names(run: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("images-")) for p in (run / "checkpoints").iterdir())


def test_ls_shows_each_with_ranks_stage_and_validation_loss(run: Path, caplog):
    (run / "checkpoints" / "images-000000000020" / "checkpoint.json").unlink()
    status, said = call(caplog, "ls", str(run))
    assert status == 0
    lines = [line.split() for line in said.splitlines() if "images-" in line]
    assert [line[-3:] for line in lines] == [
        ["2", "2", "0.2000"],
        ["0.000", "?", "?"],
        ["2", "2", "0.3000"],
        ["0.000", "2", "2"],
    ]


def test_verify_names_the_damaged_one(run: Path, caplog):
    assert call(caplog, "verify", str(run))[0] == 0
    flip_byte(run / "checkpoints" / "images-000000000030")
    status, said = call(caplog, "verify", str(run))
    assert status == 1
    assert "images-000000000030  state/model.pt does not have its checksum" in said
    assert "3 of 4 checkpoints are intact" in said
    assert names(run) == [10, 20, 30, 40]


def test_prune_removes_what_no_rule_keeps_and_never_counts_a_damaged_one(run: Path, caplog):
    assert "would remove images-000000000020" in call(caplog, "prune", str(run), "--dry-run")[1]
    assert names(run) == [10, 20, 30, 40]
    flip_byte(run / "checkpoints" / "images-000000000040")
    assert call(caplog, "prune", str(run), "--last", "1")[0] == 0
    assert names(run) == [10, 30, 40]
    assert call(caplog, "prune", str(run), "--last", "1", "--no-best")[0] == 0
    assert names(run) == [30, 40]


@pytest.mark.parametrize("arguments", [["ls"], ["prune", "--last", "0"]])
def test_a_wrong_folder_or_rule_is_named(tmp_path: Path, caplog, arguments: list[str]):
    if len(arguments) > 1:
        write(tmp_path, 10)
    status, said = call(caplog, arguments[0], str(tmp_path), *arguments[1:])
    assert status == 2
    assert "wanted" in said
