"""Shared by the tests of the shard tool."""

from pathlib import Path

import pytest

from tests.shards_tool.archive import write_archive, write_key


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    write_archive(root)
    return root


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_key(tmp_path / "key")
