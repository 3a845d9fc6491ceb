"""Shared by the tests of the shard tool."""

import shutil
from pathlib import Path

import cv2
import pytest

from shards_tool.build import build
from tests.shards_tool.archive import SMALL, picture, twelve_bit, write_archive, write_dicom, write_key


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    write_archive(root)
    return root


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Four DICOM files in a folder, and a PNG beside it."""
    root = tmp_path / "films"
    for seed in range(4):
        write_dicom(root / "a" / f"{seed}.dcm", twelve_bit(seed), seed=seed)
    cv2.imwrite(str(root / "b.png"), picture(9))
    return root


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_key(tmp_path / "key")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished data set, not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    write_archive(root / "archive")
    build([root / "archive"], root / "data", SMALL, key_file=write_key(root / "key"), workers=0)
    return root / "data"


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    """A finished data set of a test's own."""
    return Path(shutil.copytree(whole, tmp_path / "data"))
