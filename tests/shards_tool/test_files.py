import os
import stat
from pathlib import Path

import pytest

from shards_tool.files import remove_temporary_files, whole_file, write_whole


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "file"
    with whole_file(path) as file:
        file.write(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc" and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyboardInterrupt), whole_file(path):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_mode_is_as_asked(tmp_path: Path):
    write_whole(tmp_path / "secret", b"x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_left_over_temporary_files_are_removed(tmp_path: Path):
    (tmp_path / "shard-000000.tar.17.tmp").write_bytes(b"half")
    (tmp_path / "keep").write_bytes(b"")
    remove_temporary_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]
