import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest

from shards_tool.cli import main
from shards_tool.schema import MANIFEST
from tests.shards_tool.archive import picture


def status_of(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_build_verify_preview(
    archive: Path, key_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    data = tmp_path / "data"
    small = ("--side", 64, "--shard-size", 3, "--workers", 0, "--key-file", key_file)
    assert status_of("build", archive, "--out", data, "--meta", archive / "table.csv", *small) == 0
    printed = capfd.readouterr()
    assert "11 files: 7 films" in printed.out and "2 in quarantine" in printed.out
    assert status_of("verify", data, "--workers", 0) == 0
    assert "no faults" in capfd.readouterr().out
    assert status_of("preview", data, "--out", tmp_path / "sheet.png") == 0
    assert (tmp_path / "sheet.png").exists()
    before = ("--before", archive, "--key-file", key_file)
    assert status_of("preview", data, "--out", tmp_path / "both.png", *before) == 0
    assert (tmp_path / "both.png").stat().st_size > (tmp_path / "sheet.png").stat().st_size
    assert status_of("stats", data, "--out", tmp_path / "stats.html") == 0
    assert "Edema" in capfd.readouterr().out and "Edema" in (tmp_path / "stats.html").read_text()
    fractions = ("--fractions", 0.5, 0.25, 0.25, "--salt", "x", "--workers", 0)
    assert status_of("split", data, "--out", tmp_path / "split", *fractions) == 0
    assert status_of("verify", tmp_path / "split", "--no-pictures", "--workers", 0) == 0
    (data / "train" / "index.npy").unlink()
    assert status_of("index", data, "--workers", 0) == 0
    assert "wrote train/index.npy" in capfd.readouterr().out
    assert status_of("index", data, "--workers", 0) == 0
    assert "all index files were right" in capfd.readouterr().out
    next(data.glob("train/*.idx")).unlink()
    assert status_of("verify", data, "--workers", 0) == 1
    assert ".idx: missing" in capfd.readouterr().out


def test_parts_and_their_merger(
    archive: Path, key_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    request = (archive, "--out", tmp_path / "data", "--side", 64, "--workers", 0, "--key-file", key_file)
    for part in ("2/2", "1/2"):
        assert status_of("build", *request, "--part", part) == 0
        assert f"part {part}: " in capfd.readouterr().out
    assert status_of("build", *request, "--part", "two") == 2
    assert "--part two: wanted I/N" in capfd.readouterr().err
    assert status_of("merge", *request) == 0
    assert "11 files: 7 films" in capfd.readouterr().out
    assert status_of("verify", tmp_path / "data", "--workers", 0) == 0


def test_phantoms_go_in_with_their_masks_and_reports(
    key_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    phantoms, data = tmp_path / "phantoms", tmp_path / "data"
    assert status_of("phantom", phantoms, "--patients", 1, "--seed", 3, "--workers", 1) == 0
    request = ("--meta", phantoms / "metadata.csv", "--contour", f"masks:{phantoms / 'masks'}")
    options = ("--side", 256, "--fractions", 1, 0, 0, "--workers", 0, "--key-file", key_file)
    assert status_of("build", phantoms / "dicom", "--out", data, *request, *options) == 0
    assert status_of("verify", data, "--workers", 0) == 0
    records = pq.read_table(data / "samples.parquet").to_pylist()
    assert records and {record["contour"] for record in records} == {"mask"}
    assert all({"en", "zh"} == set(dict(record["reports"])) and record["labels"] for record in records)
    assert {record["window"] for record in records} <= {"linear", "sigmoid", "voi_lut"}
    assert "phantom" not in (data / "manifest.json").read_text()


def test_a_wrong_request_is_one_line_and_status_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert status_of("build", tmp_path / "none", "--out", tmp_path / "data") == 2
    printed = capfd.readouterr().err
    assert "error: no such source" in printed and "Traceback" not in printed


@pytest.mark.parametrize("name", ["scans/[ab]*.dcm", "[/data]", "[bold]x[/bold]", ":lung:", "a b " * 30])
def test_names_are_printed_as_they_are(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str):
    assert status_of("verify", name) == 2
    assert f"error: {name} has no manifest.json" in capfd.readouterr().err
    assert status_of("contour", tmp_path, "--out", tmp_path / "masks" / name, "--contour", "rect") == 0
    assert f"see {tmp_path / 'masks' / name / 'contours.jsonl'}" in capfd.readouterr().out


def test_what_is_not_there_or_cannot_be_written_is_one_line_and_status_2(
    data: Path, key_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    none, archive = tmp_path / "none", ("--archive", tmp_path, "--table", tmp_path / "boxes.csv")
    boxes = ("boxes", none, *archive, "--out", tmp_path / "boxes.parquet", "--key-file", key_file)
    assert status_of(*boxes) == 2
    printed = capfd.readouterr().err
    assert f"error: {none} has no manifest.json" in printed and "Traceback" not in printed
    assert status_of("preview", data, "--out", key_file / "sheet.png") == 2
    printed = capfd.readouterr().err
    assert "error: " in printed and str(key_file / "sheet.png") in printed and "Traceback" not in printed


SLOWLY = """
import time
from shards_tool import assemble, cli
run_tasks = assemble.run_tasks
def slowly(*given, **named):
    for done in run_tasks(*given, **named):
        yield done
        time.sleep(0.2)
assemble.run_tasks = slowly
cli.main()
"""
"""A build that takes seconds for its shards, so that it can be stopped between the first and the last."""


def test_ctrl_c_ends_all_processes_and_leaves_no_half_file(key_file: Path, tmp_path: Path):
    archive, data = tmp_path / "archive", tmp_path / "data"
    archive.mkdir()
    for seed in range(160):
        cv2.imwrite(str(archive / f"{seed}.png"), picture(seed, 300, 260))
    arguments = [
        "build",
        archive,
        "--out",
        data,
        "--shard-size",
        "4",
        "--workers",
        "2",
        "--key-file",
        key_file,
    ]
    command = [sys.executable, "-c", SLOWLY, *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not list(data.glob("*/*.tar")):
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "run the same command to go on" in errors and "Traceback" not in errors
    )
    assert not (data / MANIFEST).exists() and not list(data.rglob("*.tmp"))
