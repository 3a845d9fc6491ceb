"""Files that appear whole or not at all: temporary name in the same folder, fsync, rename."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def whole_file(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a new file that gets its name only when the block ends without an error.

    Raises:
        OSError: where the disk is full or the folder cannot be written; nothing is left behind.
    """
    # So that a worker that outlives a killed build does not write into the next one's file. Random, because
    # processes of two nodes or containers may have the same number.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        temporary.touch(mode)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    with whole_file(path, mode) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Make renames in the folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
