"""From films that are made to a finished data set: write the shards, the tables, and the manifest last."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards_tool.files import remove_temporary_files, write_whole
from shards_tool.ledger import Ledger
from shards_tool.progress import progress_bar
from shards_tool.schema import FORMAT_VERSION, INDEX, MANIFEST, QUARANTINE, SAMPLES, SPLITS, shard_name
from shards_tool.settings import BuildStoppedError, BuildSummary
from shards_tool.shard import ShardTask, ShardWriter
from shards_tool.tables import file_sha256, write_index, write_samples
from shards_tool.workers import Died, run_tasks

log = logging.getLogger(__name__)

_MAX_DEATHS = 2
"""Workers that may die at one shard, which is a copy of bytes: the first may be someone's kill."""


def write_shards(
    ledger: Ledger, writer: ShardWriter, tasks: Iterable[ShardTask], *, samples: int, workers: int
) -> None:
    """Write the shards that are not there yet.

    Raises:
        BuildStoppedError: workers die, or the films to copy are damaged.
    """
    for split in SPLITS:
        (writer.out / split).mkdir(exist_ok=True)
        remove_temporary_files(writer.out / split)
    todo = _unfinished(ledger, writer.out, tasks)
    deaths: Counter[str] = Counter()
    with progress_bar("shards", total=samples) as bar:
        while True:
            again: list[ShardTask] = []
            for task, result in run_tasks(writer, todo, workers=workers, on_step=bar.advance):
                if isinstance(result, Died):
                    name = f"{task.split}/{shard_name(task.number)}"
                    deaths[name] += 1
                    log.warning("a worker died writing %s (exit code %d)", name, result.exit_code)
                    if deaths[name] >= _MAX_DEATHS:
                        raise BuildStoppedError(f"workers die writing {name}; is there enough memory?")
                    again.append(task)
                    continue
                ledger.add_shard(result.file, result.rows)
            if not again:
                return
            todo = iter(again)


def _unfinished(ledger: Ledger, out: Path, tasks: Iterable[ShardTask]) -> Iterator[ShardTask]:
    """The shards that are not there yet; those of an older plan are forgotten."""
    kept = 0
    numbers: Counter[str] = Counter()
    for task in tasks:
        numbers[task.split] += 1
        known = ledger.shard(task.split, task.number)
        path = out / task.split / shard_name(task.number)
        size = path.stat().st_size if path.exists() else 0
        if known is not None and known.plan == task.plan and known.bytes == size:
            kept += 1
            continue
        ledger.forget_shard(task.split, task.number)
        yield task
    for split in SPLITS:
        ledger.forget_shards_from(split, numbers[split])
    if kept:
        log.info("going on with an interrupted build: %d shards were finished already", kept)


def finalise(
    ledger: Ledger, out: Path, manifest: dict[str, object], left_out: dict[str, int]
) -> BuildSummary:
    """Write the tables, and the manifest last: a folder with a manifest is complete.

    Args:
        manifest: what it says besides the format version, counts, splits and checksums.
        left_out: rows of the quarantine table, which is there already, by outcome.
    """
    splits = {}
    for split in SPLITS:
        shards = ledger.shards(split)
        _remove_strays(out / split, {shard_name(shard.number) for shard in shards})
        write_index(ledger, out, split)
        splits[split] = {
            "samples": sum(shard.samples for shard in shards),
            "patients": ledger.count_patients(split),
            "shards": [
                {
                    "name": shard_name(shard.number),
                    "samples": shard.samples,
                    "bytes": shard.bytes,
                    "sha256": shard.sha256,
                }
                for shard in shards
            ],
        }
    contours = write_samples(ledger, out)
    counts = {
        "samples": sum(split["samples"] for split in splits.values()),
        "duplicates": left_out.get("duplicate", 0),
        "excluded": left_out.get("excluded", 0),
        "quarantined": left_out.get("quarantine", 0),
    }
    tables = [SAMPLES, QUARANTINE, *(f"{split}/{INDEX}" for split in SPLITS)]
    whole = manifest | {
        "format_version": FORMAT_VERSION,
        "counts": {"inputs": sum(counts.values()), **counts},
        "contours": dict(sorted(contours.items())),
        "splits": splits,
        "tables": {name: file_sha256(out / name) for name in tables},
    }
    write_whole(out / MANIFEST, json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n")
    return summary_of(whole)


def _remove_strays(folder: Path, names: set[str]) -> None:
    """Shards that an interrupted build of an older plan left behind."""
    for path in folder.glob("shard-*"):
        if path.with_suffix(".tar").name not in names:
            path.unlink()


def summary_of(manifest: dict) -> BuildSummary:
    return BuildSummary(
        **manifest["counts"],
        splits={split: manifest["splits"][split]["samples"] for split in SPLITS},
        contours=manifest["contours"],
    )
