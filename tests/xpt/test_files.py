import errno
import os
from pathlib import Path

import pytest

from xpt.files import read_json_lines, remove_torn, write_atomically


def test_content_replaces_what_was_there(tmp_path: Path):
    path = tmp_path / "a.json"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_that_write_one_file_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.json"
    sync = os.fsync

    def meanwhile(descriptor: int) -> None:
        """Another process writes the same file before this one has renamed its own."""
        monkeypatch.setattr(os, "fsync", sync)
        write_atomically(path, "theirs")

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_atomically(path, "ours")
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_line_is_left_out(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"images": 8, "loss": 1.0}\n{"images": 16, "lo')
    assert read_json_lines(path) == [{"images": 8, "loss": 1.0}]


def test_what_killed_writers_left_long_ago_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(_source: Path, _target: Path) -> None:
        os._exit(1)

    for name, hours in (("old.json", 2), ("new.json", 0)):
        if not (child := os.fork()):
            monkeypatch.setattr(Path, "replace", killed)
            write_atomically(tmp_path / name, "half a result")
        os.waitpid(child, 0)
        (torn,) = tmp_path.glob(f".{name}.*")
        os.utime(torn, (torn.stat().st_atime, torn.stat().st_mtime - 3600 * hours))
    (tmp_path / ".images-1.tmp").mkdir()  # a checkpoint; somebody else looks after those
    (tmp_path / "old.json").write_text("whole")
    remove_torn(tmp_path)
    assert sorted(path.name.split(".")[1] for path in tmp_path.glob(".*")) == ["images-1", "new"]
    assert (tmp_path / "old.json").exists()
