"""Divide a finished data set into splits anew: by patient and duplicate group, labels spread evenly."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shards_tool.assemble import finalise, summary_of, write_shards
from shards_tool.files import write_whole
from shards_tool.ledger_rows import Piece
from shards_tool.likeness import components
from shards_tool.output import (
    BUILD_FOLDER,
    check_output_folder,
    finished_manifest,
    open_ledger,
    stopping_cleanly,
)
from shards_tool.schema import (
    INDEX,
    KEY_LENGTH,
    MANIFEST,
    QUARANTINE,
    SAMPLES,
    SPLITS,
    read_record,
    shard_name,
)
from shards_tool.settings import BuildSettings, BuildSummary
from shards_tool.shard import ShardTask, ShardWriter, Stored
from shards_tool.tables import file_sha256
from shards_tool.verify import read_manifest
from shards_tool.workers import cpu_count

log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """Of each sample, in the order of the samples table."""

    keys: npt.NDArray[np.bytes_]
    patients: npt.NDArray[np.bytes_]
    unit: Ints
    """The lowest row that must be in the same split: of the same patient, or a duplicate."""
    labels: npt.NDArray[np.bool_]
    """N x (1 + labels): the first column is all True, the others where a label is present."""


def split_again(
    root: Path,
    out: Path,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    salt: str = "",
    workers: int | None = None,
) -> BuildSummary:
    """Copy a data set into other splits. Which one a patient is in depends on the samples and the salt alone.

    Raises:
        ValueError: no data set, fractions that do not add up to 1, or an output folder of something else.
        BuildStoppedError: the disk is full, or a picture in the data set is damaged.
    """
    BuildSettings(fractions=fractions)  # checks them
    source = read_manifest(root)
    workers = workers if workers is not None else cpu_count()
    kept = {name: value for name, value in source["settings"].items() if name != "splits"}
    recorded: dict[str, object] = kept | {
        "fractions": list(fractions),
        "salt": salt,
        "split_from": file_sha256(root / MANIFEST),
    }
    with stopping_cleanly():
        check_output_folder(out)
        with open_ledger(out, out / BUILD_FOLDER, recorded) as ledger:
            if (manifest := finished_manifest(out)) is not None:
                log.info("%s is complete already; nothing to do", out)
                return summary_of(manifest)
            samples = _read_samples(root, source)
            split_of = stratified(samples.unit, samples.labels, samples.patients, fractions, salt)
            tasks = _tasks(root, samples, split_of, int(source["settings"]["shard_size"]), recorded)
            writer = ShardWriter(out=out, pieces=root, format=source["settings"]["format"])
            write_shards(ledger, writer, tasks, samples=len(samples.keys), workers=workers)
            write_whole(out / QUARANTINE, (root / QUARANTINE).read_bytes())
            counts = source["counts"]
            left_out = {
                "duplicate": counts["duplicates"],
                "excluded": counts["excluded"],
                "quarantine": counts["quarantined"],
            }
            manifest = {"settings": recorded, **{name: source[name] for name in ("software", "input_sha256")}}
            summary = finalise(ledger, out, manifest, left_out)
        shutil.rmtree(out / BUILD_FOLDER)
    return summary


def stratified(
    unit: Ints,
    labels: npt.NDArray[np.bool_],
    names: npt.NDArray[np.bytes_],
    fractions: tuple[float, float, float],
    salt: str,
) -> Ints:
    """The split of each row, all rows of a unit in one, so that every label has its fractions nearly kept.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) of units: those with the rarest
    label choose first, and take the split that lacks most of what they bring.

    Args:
        unit: N, the number of each row's unit.
        labels: N x labels, True where present; the first column is True everywhere.
        names: N, decide the order of what is equal otherwise, together with the salt.
    """
    units, first, number = np.unique(unit, return_index=True, return_inverse=True)
    content = np.zeros((len(units), labels.shape[1]), np.int64)
    np.add.at(content, number, labels)
    total = content.sum(axis=0)
    rarity = np.where(content > 0, total, np.iinfo(np.int64).max).min(axis=1)
    draw = [hashlib.sha256(f"{salt}\0".encode() + bytes(names[i])).digest() for i in first]
    order = sorted(range(len(units)), key=lambda i: (rarity[i], -content[i, 0], draw[i]))
    # Shares of each label that a split still lacks; a unit weighs by its share of each label.
    lacking = np.repeat(np.asarray(fractions, np.float64)[:, None], labels.shape[1], axis=1)
    share = content / np.maximum(total, 1)
    open_splits = np.flatnonzero(np.asarray(fractions) > 0)
    split_of_unit = np.empty(len(units), np.int64)
    for i in order:
        # Of the rarest label first; what is equal in that (to rounding) is decided by all labels together.
        rarest = int(np.argmin(np.where(content[i] > 0, total, np.iinfo(np.int64).max)))
        wanted = np.round(lacking[open_splits, rarest], 9) + 1e-3 * (lacking[open_splits] @ share[i])
        chosen = int(open_splits[np.argmax(wanted)])
        split_of_unit[i] = chosen
        lacking[chosen] -= share[i]
    return split_of_unit[number]


def _read_samples(root: Path, manifest: dict) -> _Samples:
    file = pq.ParquetFile(root / SAMPLES)
    count = file.metadata.num_rows
    if count != manifest["counts"]["samples"]:
        raise ValueError(f"{root / SAMPLES} does not belong to the manifest: see xpt-shards verify")
    columns = {name: np.empty(count, f"S{KEY_LENGTH}") for name in ("key", "patient", "duplicate_group")}
    names: dict[str, int] = {}
    present: list[tuple[int, int]] = []
    row = 0
    for batch in file.iter_batches(batch_size=4096, columns=[*columns, "labels"]):
        for name, values in columns.items():
            values[row : row + batch.num_rows] = [text.encode() for text in batch.column(name).to_pylist()]
        for offset, labels in enumerate(batch.column("labels").to_pylist()):
            present += [
                (row + offset, names.setdefault(name, len(names))) for name, value in labels if value == 1
            ]
        row += batch.num_rows
    labels = np.zeros((count, 1 + len(names)), dtype=bool)
    labels[:, 0] = True
    for at, name in present:
        labels[at, 1 + name] = True
    links = [_linked(columns["patient"], np.arange(count))]
    grouped = np.flatnonzero(columns["duplicate_group"] != b"")
    links.append(_linked(columns["duplicate_group"][grouped], grouped))
    return _Samples(
        keys=columns["key"], patients=columns["patient"], unit=components(count, links), labels=labels
    )


def _linked(names: npt.NDArray[np.bytes_], rows: Ints) -> Ints:
    """Each row, paired with the first of the same name."""
    _, first, number = np.unique(names, return_index=True, return_inverse=True)
    return np.stack([rows[first[number]], rows], axis=1)


def _tasks(
    root: Path, samples: _Samples, split_of: Ints, size: int, recorded: dict[str, object]
) -> Iterator[ShardTask]:
    """All shards, by split and number; films by their keys, as `build` has them."""
    indexes = {split: np.load(root / split / INDEX, mmap_mode="r") for split in SPLITS}
    places = [(split, row) for split in SPLITS for row in range(len(indexes[split]))]
    for number, split in enumerate(SPLITS):
        rows = np.flatnonzero(split_of == number)
        rows = rows[np.argsort(samples.keys[rows], kind="stable")]
        for shard, start in enumerate(range(0, len(rows), size)):
            plan = hashlib.sha256(json.dumps(recorded, sort_keys=True).encode())
            stored = []
            for row in rows[start : start + size].tolist():
                source, place = places[row]
                entry = indexes[source][place]
                if entry["key"] != samples.keys[row]:
                    raise ValueError(f"{root}: {SAMPLES} and {source}/{INDEX} differ: see xpt-shards verify")
                plan.update(entry["key"])
                stored.append(_stored(root, source, entry))
            yield ShardTask(split=split, number=shard, plan=plan.hexdigest(), samples=stored)


def _stored(root: Path, split: str, entry: np.void) -> Stored:
    name = f"{split}/{shard_name(int(entry['shard']))}"
    image, contour, text = (
        Piece(**{field: int(entry[f"{what}_{field}"]) for field in ("offset", "size", "crc32")})
        for what in ("image", "contour", "json")
    )
    with (root / name).open("rb") as file:
        file.seek(text.offset)
        record = read_record(file.read(text.size))
    return Stored(record=record, file=name, image=image, contour=contour)
