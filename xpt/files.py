"""Files that appear whole or not at all."""

import math
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary name in the same folder, fsync, rename.

    Raises OSError (disk full, no permission) with nothing left under either name.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file that someone else wrote durable."""
    _sync(path)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_nan(value: Any) -> Any:  # noqa: ANN401  JSON
    """JSON has no NaN: null says that a number is undefined."""
    if isinstance(value, dict):
        return {name: without_nan(content) for name, content in value.items()}
    if isinstance(value, list):
        return [without_nan(content) for content in value]
    return None if isinstance(value, float) and math.isnan(value) else value
