"""Killed, cut off, full, forbidden: a build loses nothing and ends in the same bytes."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import pytest

from shards_tool import build as build_module
from shards_tool.build import build
from shards_tool.output import BUILD_FOLDER
from shards_tool.schema import MANIFEST
from shards_tool.settings import BuildSettings, BuildStoppedError
from shards_tool.shard import ShardTask, ShardWriter
from shards_tool.sources import Root
from shards_tool.verify import verify
from tests.shards_tool.archive import (
    FILMS,
    SMALL,
    picture,
    quarantine_of,
    records_of,
    tree,
)


class Killed(BaseException):
    """Stands for a kill between two shards."""


def interrupted_build(archive: Path, data: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = ShardWriter.__call__
    count = 0

    def write_or_die(self: ShardWriter, task: ShardTask, step):
        nonlocal count
        count += 1
        if count == 2:
            raise Killed
        return write(self, task, step)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "__call__", write_or_die)
        with pytest.raises(Killed):
            build([archive], data, SMALL, key_file=key_file, workers=0)
    assert (data / BUILD_FOLDER).exists() and not (data / MANIFEST).exists()


def test_an_interrupted_build_goes_on_and_ends_in_the_same_bytes(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    data = tmp_path / "data"
    interrupted_build(archive, data, key_file, monkeypatch)
    (kept,) = data.glob("*/*.tar")
    when = kept.stat().st_mtime_ns
    (kept.parent / "shard-000077.tar.1.tmp").write_bytes(b"half")
    build([archive], data, SMALL, key_file=key_file, workers=0)
    assert kept.stat().st_mtime_ns == when
    assert tree(data) == tree(tmp_path / "whole")


def test_input_that_changed_in_between_is_taken_as_it_is_now(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    interrupted_build(archive, data, key_file, monkeypatch)
    cv2.imwrite(str(archive / "a.png"), picture(50))
    cv2.imwrite(str(archive / "new.png"), picture(51))
    (archive / "b.png").unlink()
    build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


def test_another_request_into_the_same_folder_is_refused(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unfinished, finished = tmp_path / "unfinished", tmp_path / "finished"
    interrupted_build(archive, unfinished, key_file, monkeypatch)
    build([archive], finished, SMALL, key_file=key_file, workers=0)
    other = dataclasses.replace(SMALL, side=128, quality=80)
    other_key = tmp_path / "other key"
    other_key.write_text("f" * 64)
    for data in (unfinished, finished):
        with pytest.raises(ValueError, match=r"side: 64 there, 128 now; quality: 95 there, 80 now"):
            build([archive], data, other, key_file=key_file, workers=0)
        with pytest.raises(ValueError, match=r"key_fingerprint: "):
            build([archive], data, SMALL, key_file=other_key, workers=0)
    (archive / "a.png").unlink()
    with pytest.raises(ValueError, match="finished data set of other input"):
        build([archive], finished, SMALL, key_file=key_file, workers=0)
    assert not (finished / BUILD_FOLDER).exists() and verify(finished, workers=0).faults == []


def test_a_second_build_at_the_same_time_is_refused(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"

    def build_again(*_args: object) -> None:
        with pytest.raises(ValueError, match="another build is writing"):
            build([archive], data, SMALL, key_file=key_file, workers=0)
        raise Killed

    monkeypatch.setattr(build_module, "scan_inputs", build_again)
    with pytest.raises(Killed):
        build([archive], data, SMALL, key_file=key_file, workers=0)


def test_kill_9_and_the_same_command_give_the_same_bytes(key_file: Path, tmp_path: Path):
    archive = tmp_path / "archive"
    archive.mkdir()
    for seed in range(30):
        cv2.imwrite(str(archive / f"{seed}.png"), picture(seed, 300, 260))
    data = tmp_path / "data"
    arguments = [
        *("build", str(archive), "--out", str(data), "--side", "320", "--shard-size", "4", "--workers", "2"),
        *("--key-file", str(key_file)),
    ]
    code = "from shards_tool import make; make.PACK_FILMS = 4; from shards_tool.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    kills = 0
    for packs in (1, 3):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(data.glob(".build/*.bin"))) < packs:
                time.sleep(0.002)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
    assert kills == 2 and not (data / MANIFEST).exists()
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    settings = BuildSettings(side=320, shard_size=4)
    build([archive], tmp_path / "whole", settings, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


# Trouble


def test_a_film_that_crashes_its_decoder_goes_to_quarantine_after_two_tries(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from shards_tool import workers as workers_module

    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    victim = next(iter(records_of(tmp_path / "whole")))
    tries = []

    def run_inline(work, tasks, *, workers, on_step):
        """As `run_tasks` reports a worker that died at the victim."""
        for task in tasks:
            if victim in {item.film.key for item in task.films} - task.crashed:
                tries.append(task)
                yield task, workers_module.Died(item=victim, exit_code=-11)
            else:
                yield task, work(task, lambda _item: on_step())

    monkeypatch.setattr("shards_tool.make.run_tasks", run_inline)
    summary = build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    assert len(tries) == 2 and summary.samples == FILMS - 1
    assert "two workers died decoding it" in quarantine_of(tmp_path / "data").values()
    assert verify(tmp_path / "data", workers=0).faults == []


def test_a_full_disk_stops_cleanly_and_the_build_goes_on_later(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    sync = os.fsync
    calls = 0

    def full_at_the_third(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at_the_third)
        with pytest.raises(BuildStoppedError, match=r"No space left on device.*run the same command"):
            build([archive], data, SMALL, key_file=key_file, workers=0)
    assert not (data / MANIFEST).exists() and not list(data.rglob("*.tmp"))
    build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


def test_a_file_size_limit_stops_the_command_with_a_message(key_file: Path, tmp_path: Path):
    """A real failing write, in a worker process: the system refuses files over 100 kB."""
    archive = tmp_path / "archive"
    archive.mkdir()
    for seed in range(12):
        noise = np.random.default_rng(seed).integers(0, 256, (128, 128)).astype(np.uint8)
        cv2.imwrite(str(archive / f"{seed}.png"), noise)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from shards_tool.cli import main; main()"
    )
    arguments = ["build", str(archive), "--out", str(tmp_path / "data"), "--side", "128", "--workers", "1"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--key-file", str(key_file)], capture_output=True, text=True
    )
    assert run.returncode == 2 and "File too large" in run.stderr and "Traceback" not in run.stderr
    assert not list((tmp_path / "data").glob("*/*.t*"))


def test_a_folder_that_cannot_be_written_is_named(archive: Path, key_file: Path, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BuildStoppedError, match=r"Not a directory .*file/data"):
        build([archive], tmp_path / "file" / "data", SMALL, key_file=key_file, workers=0)


def test_no_write_permission_is_named(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: Path, *_args: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BuildStoppedError, match=r"Permission denied .*data"):
        build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)


def test_a_source_that_goes_away_stops_the_build_and_a_single_film_does_not(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sources, data = [archive], tmp_path / "data"
    make = build_module.make_films

    def lose_and_make(what: Path, *args):
        what.rename(tmp_path / "gone")
        make(*args)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_films", lambda *args: lose_and_make(archive, *args))
        with pytest.raises(BuildStoppedError, match="source is gone"):
            build(sources, data, SMALL, key_file=key_file, workers=0)
    (tmp_path / "gone").rename(archive)
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_films", lambda *args: lose_and_make(archive / "a.png", *args))
        build(sources, data, SMALL, key_file=key_file, workers=0)
    assert quarantine_of(data)["a.png"] == "cannot be read: No such file or directory"


def test_a_film_that_could_not_be_opened_is_tried_again(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    make = build_module.make_films

    def make_without_one(*args):
        (archive / "a.png").rename(tmp_path / "a.png")
        make(*args)
        (tmp_path / "a.png").rename(archive / "a.png")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_films", make_without_one)
        with pytest.raises(Killed):
            build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


@pytest.mark.parametrize("source_is_gone", [False, True])
def test_what_could_not_be_opened_for_scanning_is_tried_again(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source_is_gone: bool
):
    """One file is one line in quarantine, unless its whole source is gone: that stops the build at once."""
    data = tmp_path / "data"
    real = Root.open

    def refuse(root: Root, path: str) -> BinaryIO:
        if path == "a.png":
            if source_is_gone:
                archive.rename(tmp_path / "gone")
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(root, path)

    def killed(*_args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Root, "open", refuse)
        patch.setattr(build_module, "make_films", killed)
        with pytest.raises(BuildStoppedError if source_is_gone else Killed):
            build([archive], data, SMALL, key_file=key_file, workers=0)
    if source_is_gone:
        (tmp_path / "gone").rename(archive)
    build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


def test_a_film_that_changed_after_the_scan_is_not_taken_for_the_one_that_was_there(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make = build_module.make_films

    def change_and_make(*args):
        cv2.imwrite(str(archive / "a.png"), picture(77))
        os.utime(archive / "b.png")  # touched, but the same
        make(*args)

    monkeypatch.setattr(build_module, "make_films", change_and_make)
    build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    reasons = quarantine_of(tmp_path / "data")
    assert reasons["a.png"] == "the file changed during the build" and "b.png" not in reasons


def test_a_wrong_table_does_not_cost_the_films_that_are_made(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    interrupted_build(archive, data, key_file, monkeypatch)
    (tmp_path / "t.csv").write_text("name\na.png\n")
    with pytest.raises(ValueError, match="no 'file'"):
        build([archive], data, SMALL, meta=[tmp_path / "t.csv"], key_file=key_file, workers=0)
    monkeypatch.setattr("shards_tool.pack.read_film", None)
    assert build([archive], data, SMALL, key_file=key_file, workers=0).samples == FILMS
