"""The tables of a finished build: index, samples, quarantine; written a shard at a time."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards_tool.files import whole_file
from shards_tool.ledger import Ledger
from shards_tool.ledger_rows import LeftOut
from shards_tool.schema import INDEX, INDEX_DTYPE, QUARANTINE, SAMPLES, SPLITS

SAMPLES_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("patient", pa.string()),
        ("study", pa.string()),
        ("view", pa.string()),
        ("age", pa.int32()),
        ("sex", pa.string()),
        ("labels", pa.map_(pa.string(), pa.float64())),
        ("reports", pa.map_(pa.string(), pa.string())),
        ("original_height", pa.int32()),
        ("original_width", pa.int32()),
        ("bits_stored", pa.int32()),
        ("photometric", pa.string()),
        ("window", pa.string()),
        ("repairs", pa.list_(pa.string())),
        ("orientation", pa.string()),
        ("burned_in", pa.bool_()),
        ("scrubbed", pa.int32()),
        ("box", pa.list_(pa.int32(), 4)),
        ("contour", pa.string()),
        ("contour_certainty", pa.float64()),
        ("contour_reason", pa.string()),
        ("source_sha256", pa.string()),
        ("pixel_hash", pa.string()),
        ("perceptual_hash", pa.string()),
        ("duplicate_group", pa.string()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("path", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("transfer_syntax", pa.string()),
    ]
)
_QUARANTINE_ROWS = 10_000


def write_index(ledger: Ledger, out: Path, split: str) -> None:
    """`index.npy` of a split."""
    shards = ledger.shards(split)
    with whole_file(out / split / INDEX) as file:
        write_index_header(file, sum(shard.samples for shard in shards))
        for shard in shards:
            file.write(b"".join(entry for entry, _ in ledger.rows(split, shard.number)))


def write_index_header(file: BinaryIO, count: int) -> None:
    description = np.lib.format.dtype_to_descr(np.dtype(INDEX_DTYPE))
    header = {"descr": description, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_2_0(file, header)


def write_samples(ledger: Ledger, out: Path) -> Counter[str]:
    """`samples.parquet`, a row group per shard, in the order of splits and shards; returns the contours."""
    contours: Counter[str] = Counter()
    with whole_file(out / SAMPLES) as file, pq.ParquetWriter(file, SAMPLES_SCHEMA) as writer:
        for split in SPLITS:
            for shard in ledger.shards(split):
                records = [json.loads(record) for _, record in ledger.rows(split, shard.number)]
                contours.update(record["contour"] for record in records)
                writer.write_table(sample_table(split, shard.number, records))
    return contours


def sample_table(split: str, shard: int, records: list[dict]) -> pa.Table:
    """Rows of `samples.parquet` for the records of one shard."""
    rows = [
        record
        | {"split": split, "shard": shard}
        | {name: sorted(record[name].items()) for name in ("labels", "reports")}
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA)


def write_quarantine(left_out: Iterable[LeftOut], out: Path) -> Counter[str]:
    """`quarantine.parquet`; returns its number of rows by outcome."""
    counts: Counter[str] = Counter()
    with whole_file(out / QUARANTINE) as file, pq.ParquetWriter(file, QUARANTINE_SCHEMA) as writer:
        batch: list[dict[str, object]] = []
        for line in left_out:
            path = os.fsencode(line.path).decode("utf-8", "backslashreplace")
            batch.append(
                {
                    "source": line.source,
                    "path": path,
                    "outcome": line.outcome,
                    "reason": line.reason,
                    "transfer_syntax": line.transfer_syntax,
                }
            )
            counts[line.outcome] += 1
            if len(batch) == _QUARANTINE_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema=QUARANTINE_SCHEMA))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=QUARANTINE_SCHEMA))
    return counts


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
