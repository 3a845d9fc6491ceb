"""Whether anything is in two splits: a patient, a duplicate group, or a picture that no group names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shards_tool.likeness import LOOK_BYTES, near_pairs
from shards_tool.schema import KEY_LENGTH, SAMPLES, SPLITS

_COLUMNS = ("split", "key", "patient", "duplicate_group", "perceptual_hash")
_MAX_SHOWN = 20
Names = npt.NDArray[np.bytes_]


def find_leaks(root: Path) -> Iterator[tuple[str, str]]:
    """Key (or "") and fault of everything that the samples table has twice.

    The looks of all films are compared anew, so a leak shows also where the groups are wrong. Memory
    is about 100 bytes per sample.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: the table is damaged.
    """
    file = pq.ParquetFile(root / SAMPLES)
    count = file.metadata.num_rows
    split_of = np.empty(count, np.uint8)
    names = {name: np.empty(count, f"S{KEY_LENGTH}") for name in ("key", "patient", "duplicate_group")}
    looks = np.empty((count, LOOK_BYTES), np.uint8)
    row = 0
    for batch in file.iter_batches(batch_size=4096, columns=list(_COLUMNS)):
        rows = slice(row, row + batch.num_rows)
        split_of[rows] = [SPLITS.index(split) for split in batch.column("split").to_pylist()]
        for name, values in names.items():
            values[rows] = [value.encode() for value in batch.column(name).to_pylist()]
        digits = "".join(batch.column("perceptual_hash").to_pylist())
        looks[rows] = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, LOOK_BYTES)
        row += batch.num_rows
    keys, repeats = np.unique(names["key"], return_counts=True)
    for key, times in zip(keys[repeats > 1][:_MAX_SHOWN], repeats[repeats > 1], strict=False):
        yield _text(key), f"occurs {times} times"
    for patient, splits in _in_several(names["patient"], split_of):
        yield "", f"patient {patient} is in {splits}"
    is_grouped = names["duplicate_group"] != b""
    for group, splits in _in_several(names["duplicate_group"][is_grouped], split_of[is_grouped]):
        yield "", f"duplicate group {group} is in {splits}"
    for i, j in _near_across(looks, split_of):
        other = f"{SPLITS[split_of[j]]}/{_text(names['key'][j])}"
        yield _text(names["key"][i]), f"in {SPLITS[split_of[i]]} is nearly the same picture as {other}"


def _in_several(names: Names, split_of: npt.NDArray[np.uint8]) -> Iterator[tuple[str, str]]:
    """Names that are in more than one split, and in which."""
    if not len(names):
        return
    distinct, number = np.unique(names, return_inverse=True)
    is_in = np.zeros((len(distinct), len(SPLITS)), dtype=bool)
    is_in[number, split_of] = True
    for i in np.flatnonzero(is_in.sum(axis=1) > 1)[:_MAX_SHOWN].tolist():
        yield _text(distinct[i]), " and ".join(s for s, there in zip(SPLITS, is_in[i], strict=True) if there)


def _near_across(looks: npt.NDArray[np.uint8], split_of: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    across: set[tuple[int, int]] = set()
    for pairs in near_pairs(looks):
        for i, j in pairs[split_of[pairs[:, 0]] != split_of[pairs[:, 1]]].tolist():
            across.add((i, j))
            if len(across) == _MAX_SHOWN:
                return sorted(across)
    return sorted(across)


def _text(name: object) -> str:
    assert isinstance(name, bytes)
    return name.decode("utf-8", "replace")
