"""Checking a data set against its own manifest, index and format: every byte, every picture, every count."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards_tool.leaks import find_leaks
from shards_tool.progress import progress_bar
from shards_tool.schema import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    MOST_MANIFEST_BYTES,
    QUARANTINE,
    SAMPLES,
    SPLITS,
    parse_json,
)
from shards_tool.shard_check import Fault, ShardCheck, check_shard
from shards_tool.tables import file_sha256
from shards_tool.workers import Died, cpu_count, run_tasks

COUNTS = ("samples", "duplicates", "excluded", "quarantined")
"""Every input is counted in exactly one of these."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    faults: list[Fault]
    splits: dict[str, dict[str, int]]
    """For each split: shards, samples, bytes, faults."""


def verify(root: Path, *, workers: int | None = None, pictures: bool = True) -> Verdict:
    """Check a data set completely.

    Args:
        pictures: False leaves out decoding them, which takes nearly all of the time.

    Raises:
        ValueError: there is no data set of this format version to check.
    """
    manifest = read_manifest(root)
    faults = [
        *_check_tables(root, manifest),
        *_check_counts(manifest),
        *_check_strays(root, manifest),
    ]
    checks = shard_checks(root, manifest, pictures)
    with progress_bar("verify", total=sum(check.samples for check in checks)) as bar:
        tasks = run_tasks(
            check_shard, checks, workers=workers if workers is not None else cpu_count(), on_step=bar.advance
        )
        for check, result in tasks:
            if isinstance(result, Died):
                what = f"decoding it ended a worker (exit code {result.exit_code})"
                result = [Fault(where=f"{check.split}/{check.name}", key=result.item, what=what)]
            faults.extend(result)
            bar.note(f"{len(faults)} faults" if faults else "")
    faults += _check_rows(root, manifest)
    faults.sort(key=dataclasses.astuple)
    splits = {}
    for split in SPLITS:
        shards = manifest["splits"][split]["shards"]
        splits[split] = {
            "shards": len(shards),
            "samples": sum(shard["samples"] for shard in shards),
            "bytes": sum(shard["bytes"] for shard in shards),
            "faults": sum(fault.where.startswith(f"{split}/") for fault in faults),
        }
    return Verdict(faults=faults, splits=splits)


def read_manifest(root: Path) -> dict:
    """The manifest of a data set.

    Raises:
        ValueError: no folder, no or a damaged manifest, another format version.
    """
    path = root / MANIFEST
    if not path.is_file():
        state = "an unfinished build: run its command again" if (root / ".build").is_dir() else "no data set"
        raise ValueError(f"{root} has no {MANIFEST}: it is {state}")
    try:
        manifest = parse_json(path.read_bytes(), MOST_MANIFEST_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        version = manifest["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}; this program reads version {FORMAT_VERSION}")
        for split in SPLITS:
            for shard in manifest["splits"][split]["shards"]:
                assert shard["name"].startswith("shard-") and "/" not in shard["name"]
                assert shard["samples"] > 0 and shard["bytes"] > 0 and len(shard["sha256"]) == 64
        assert manifest["settings"]["side"] > 0 and manifest["counts"] and manifest["tables"]
    except (KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} is damaged: {error or 'a value is out of range'}") from error
    return manifest


def shard_checks(root: Path, manifest: dict, pictures: bool) -> list[ShardCheck]:
    checks = []
    for split in SPLITS:
        first_row = 0
        for shard in manifest["splits"][split]["shards"]:
            check = ShardCheck(
                root=root,
                split=split,
                number=int(shard["name"][6:-4]),
                first_row=first_row,
                row_group=len(checks),
                side=manifest["settings"]["side"],
                format=manifest["settings"]["format"],
                pictures=pictures,
                **shard,
            )
            checks.append(check)
            first_row += shard["samples"]
    return checks


def _check_tables(root: Path, manifest: dict) -> Iterator[Fault]:
    for name, sha256 in manifest["tables"].items():
        path = root / name
        if not path.is_file():
            yield Fault(where=name, key="", what="missing")
        elif file_sha256(path) != sha256:
            yield Fault(where=name, key="", what="SHA-256 differs from the manifest's")


def _check_counts(manifest: dict) -> Iterator[Fault]:
    counts = manifest["counts"]
    if counts["inputs"] != sum(counts[name] for name in COUNTS):
        yield Fault(where=MANIFEST, key="", what=f"counts do not add up: {counts}")
    total = 0
    for split in SPLITS:
        stated = manifest["splits"][split]["samples"]
        total += stated
        if stated != sum(shard["samples"] for shard in manifest["splits"][split]["shards"]):
            yield Fault(
                where=MANIFEST, key="", what=f"{split} says {stated} samples, its shards hold another number"
            )
    if total != counts["samples"]:
        yield Fault(where=MANIFEST, key="", what=f"{counts['samples']} samples stated, {total} in the splits")


def _check_strays(root: Path, manifest: dict) -> Iterator[Fault]:
    expected = {MANIFEST, SAMPLES, QUARANTINE, *SPLITS}
    for split in SPLITS:
        expected.add(f"{split}/{INDEX}")
        for shard in manifest["splits"][split]["shards"]:
            expected |= {f"{split}/{shard['name']}", f"{split}/{shard['name'][:-4]}.idx"}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name not in expected:
            yield Fault(where=name, key="", what="does not belong to the data set")


def _check_rows(root: Path, manifest: dict) -> Iterator[Fault]:
    """Every input has one row in the tables, and no patient or picture is in two splits."""
    counts = manifest["counts"]
    try:
        rows = pq.read_metadata(root / SAMPLES).num_rows
        if rows != counts["samples"]:
            yield Fault(where=SAMPLES, key="", what=f"{rows} rows, the manifest says {counts['samples']}")
        for key, what in find_leaks(root):
            yield Fault(where=SAMPLES, key=key, what=what)
    except (OSError, ValueError, pa.ArrowException) as error:
        yield Fault(where=SAMPLES, key="", what=f"cannot be read: {error}")
    outcomes: Counter[str] = Counter()
    try:
        for batch in pq.ParquetFile(root / QUARANTINE).iter_batches(columns=["outcome"]):
            outcomes.update(batch.column("outcome").to_pylist())
    except (OSError, pa.ArrowException) as error:
        yield Fault(where=QUARANTINE, key="", what=f"cannot be read: {error}")
        return
    for name, outcome in (
        ("duplicates", "duplicate"),
        ("excluded", "excluded"),
        ("quarantined", "quarantine"),
    ):
        if (found := outcomes.pop(outcome, 0)) != counts[name]:
            yield Fault(
                where=QUARANTINE, key="", what=f"{found} rows of {name}, the manifest says {counts[name]}"
            )
    if outcomes:
        yield Fault(where=QUARANTINE, key="", what=f"unknown outcomes: {', '.join(map(str, outcomes))}")
