"""Index files from the shards themselves, where they were lost or damaged."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards_tool.files import whole_file, write_whole
from shards_tool.progress import progress_bar
from shards_tool.schema import INDEX, INDEX_DTYPE, SPLITS, read_record
from shards_tool.shard import index_entry
from shards_tool.shard_check import ShardCheck, open_shard
from shards_tool.tables import file_sha256, write_index_header
from shards_tool.tar import idx_text
from shards_tool.verify import read_manifest, shard_checks
from shards_tool.workers import Died, Step, cpu_count, run_tasks


@dataclass(frozen=True, kw_only=True)
class _Read:
    entries: bytes
    """Rows of index.npy."""
    idx: str


def rebuild_index(root: Path, *, workers: int | None = None) -> list[str]:
    """Write `index.npy` and every `.idx` anew; returns the files that were missing or different.

    Raises:
        ValueError: no data set, or a shard is not what the manifest says: then there is nothing to rely on.
    """
    manifest = read_manifest(root)
    checks = shard_checks(root, manifest, pictures=False)
    rebuilt = []
    found: dict[tuple[str, int], _Read] = {}
    with progress_bar("index ", total=sum(check.samples for check in checks)) as bar:
        tasks = run_tasks(
            read_shard, checks, workers=cpu_count() if workers is None else workers, on_step=bar.advance
        )
        for check, result in tasks:
            if isinstance(result, Died):
                raise ValueError(f"a worker died reading {check.split}/{check.name}")
            found[check.split, check.number] = result
    for check in checks:
        path = root / check.split / f"{check.name[:-4]}.idx"
        text = found[check.split, check.number].idx.encode()
        if not path.is_file() or path.read_bytes() != text:
            write_whole(path, text)
            rebuilt.append(f"{check.split}/{path.name}")
    for split in SPLITS:
        path = root / split / INDEX
        name = f"{split}/{INDEX}"
        if path.is_file() and file_sha256(path) == manifest["tables"][name]:
            continue
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            write_index_header(file, manifest["splits"][split]["samples"])
            for check in checks:
                if check.split == split:
                    file.write(found[split, check.number].entries)
        rebuilt.append(name)
        if file_sha256(path) != manifest["tables"][name]:
            raise ValueError(f"{path} was rebuilt, but is not the one that the manifest was made with")
    return rebuilt


def read_shard(check: ShardCheck, step: Step) -> _Read:
    """Index rows and `.idx` of one shard.

    Raises:
        ValueError: the shard is missing or not what the manifest says.
    """
    entries = np.zeros(check.samples, dtype=INDEX_DTYPE)
    try:
        with open_shard(check) as (samples, content):
            for place, (key, members) in enumerate(samples.items()):
                step(key)
                text = content[members[2].offset : members[2].offset + members[2].size]
                entries[place] = index_entry(read_record(text), check.number, members)
    except (OSError, IndexError, ValueError) as error:
        raise ValueError(f"{check.split}/{check.name}: {error}; its source has to be built again") from error
    return _Read(entries=entries.tobytes(), idx=idx_text(list(samples.values())))
