"""Files that appear whole or not at all, and files that grow line by line."""

import contextlib
import hashlib
import json
import math
import os
import secrets
import time
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
"""Of a run: one line per interval, validation and probe."""

_TORN_AFTER = 3600
"""Seconds after which nobody is still writing a file; its process may be another computer's."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write to a temporary name in the same folder, fsync, rename.

    Two processes that write the same file do not disturb each other: the later one's content stays.
    Raises OSError (disk full, no permission) with nothing left under either name.
    """
    # Random, because processes of two nodes or containers may have the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove_torn(folder: Path) -> None:
    """Remove what writers that were killed in `write_atomically` have left in `folder`."""
    for torn in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process looks, too
            if torn.is_file() and time.time() - torn.stat().st_mtime > _TORN_AFTER:
                torn.unlink()


def sha256_of(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make durable the content of a file that someone else wrote, or renames inside a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """One object per line, none where there is no such file.

    A line that is being written, or that a killed process did not finish, is left out.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def without_nan(value: Any) -> Any:  # noqa: ANN401  JSON
    """JSON has no NaN: null says that a number is undefined."""
    if isinstance(value, dict):
        return {name: without_nan(content) for name, content in value.items()}
    if isinstance(value, list):
        return [without_nan(content) for content in value]
    return None if isinstance(value, float) and math.isnan(value) else value
