"""What is known of the films of a split: patients, labels, studies and reports, from `samples.parquet`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards_tool import schema
from xpt.data.index import ShardSet


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One entry per film of a split, in the order of its index."""

    keys: list[str]
    patients: list[str]
    labels: list[dict[str, float]]
    """1 present, 0 absent, -1 uncertain; a finding that is not named is unknown."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One entry per film of a split, in the order of its index."""

    keys: list[str]
    patients: list[str]
    studies: list[str]
    """Pseudonyms; "" where the source names none."""
    views: list[str]
    """"PA", "AP", "LATERAL", "OBLIQUE" or ""."""
    reports: list[dict[str, str]]
    """Texts by language."""


def read_samples(shards: ShardSet) -> Samples:
    """Raises ValueError where the table is missing, damaged, or of other films than the index."""
    table = _read(shards, ["labels"])
    return Samples(
        keys=table["key"].to_pylist(),
        patients=table["patient"].to_pylist(),
        labels=[dict(pairs) for pairs in table["labels"].to_pylist()],
    )


def patients_of(splits: Iterable[ShardSet]) -> dict[str, str]:
    """The patient of each film of the splits, by key. Raises ValueError as `read_samples` does."""
    tables = [_read(shards, []) for shards in splits]
    return {
        key: patient
        for table in tables
        for key, patient in zip(table["key"].to_pylist(), table["patient"].to_pylist(), strict=True)
    }


def read_reported(shards: ShardSet, *, with_texts: bool = True) -> Reported:
    """Without texts, every film's are empty. Raises ValueError as `read_samples` does."""
    table = _read(shards, ["study", "view", *(["reports"] if with_texts else [])])
    return Reported(
        keys=table["key"].to_pylist(),
        patients=table["patient"].to_pylist(),
        studies=table["study"].to_pylist(),
        views=table["view"].to_pylist(),
        reports=[dict(pairs) for pairs in table["reports"].to_pylist()] if with_texts else [{}] * len(table),
    )


def count_windows(root: Path) -> dict[str, int]:
    """Films of the data set in `root` by how their grey range was chosen, most first: "linear", "full", ...

    Raises ValueError where the table is missing or damaged.
    """
    counts: Counter[str] = Counter()
    try:
        with pq.ParquetFile(root / schema.SAMPLES) as file:
            for batch in file.iter_batches(columns=["window"]):
                for found in batch["window"].value_counts().to_pylist():
                    counts[found["values"]] += found["counts"]
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(root, error) from error
    return dict(counts.most_common())


def _unreadable(root: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{root / schema.SAMPLES}: cannot be read ({error}); "
        f"find what is damaged with: xpt-shards verify {root}"
    )


def _read(shards: ShardSet, columns: list[str]) -> pa.Table:
    """The columns of the split, beside `key` and `patient`."""
    path = shards.root / schema.SAMPLES
    try:
        table = pq.read_table(
            path, columns=["key", "patient", *columns], filters=[("split", "=", shards.split)]
        )
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(shards.root, error) from error
    keys = table["key"].to_pylist()
    if keys != [key.decode() for key in np.asarray(shards.rows["key"]).tolist()]:
        raise ValueError(
            f"{path}: its {len(keys)} films of split {shards.split} are not those of {schema.INDEX}; "
            f"find what is damaged with: xpt-shards verify {shards.root}"
        )
    return table
