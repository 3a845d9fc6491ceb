"""Where a run of 100 million films on 1,024 ranks starts, and what a step costs there, without the GPUs.

    OMP_NUM_THREADS=1 python -m benchmarks.scale [--films 100000000] [--shards 40000] [--ranks 1024]

The index has the size of the real one (76 bytes per film; a sparse file of zeros), the manifest every shard;
both are opened by the code of training, in a process of its own. First the oracle: every film of an epoch
comes exactly once, and the slices of all ranks make up each global batch. Then a model of the step, beside
published points. Process time.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.scale_model import Cluster, modelled
from shards_tool import schema
from xpt.config import vit_l_1280
from xpt.data.index import ShardSet, expect_random_reads, open_shards
from xpt.data.order import SampleOrder, rank_slice
from xpt.flops import work
from xpt.models.mae import MAE

RANKS = (8, 32, 128, 512, 1024)
WINDOW = 32
HASHED_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Options:
    films: int = 100_000_000
    shards: int = 40_000
    ranks: int = 1024
    images_per_rank: int = 8
    """Of one step."""
    json: Path | None = None
    """File to write the results to."""


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        root = write_tables(Path(folder), options.films, options.shards)
        shards = open_shards(root, "train", check_files=False)
        steps = check_coverage(shards, options)
        console.print(
            f"oracle: each of {options.films:,} films comes once in an epoch; the slices of "
            f"{options.ranks:,} ranks make up {steps} global batches"
        )
        with multiprocessing.get_context("spawn").Pool(1) as process:
            found = process.apply(start_of_a_rank, (root, options))
    found["check_seconds"] = options.films * np.dtype(schema.INDEX_DTYPE).itemsize / hash_rate()
    table = Table("of one rank", "")
    table.add_row("open manifest and index", f"{found['open_seconds']:.2f} s")
    table.add_row("first batch located", f"{found['first_batch_seconds']:.2f} s")
    table.add_row("a film found in order and index, mean", f"{1e6 * found['film_seconds']:.1f} us")
    table.add_row("memory of its own", f"{found['private_mb']:.0f} MB")
    table.add_row("SHA-256 of the index (rank 0; from 256 MB)", f"{found['check_seconds']:.1f} s")
    console.print(table)
    rows = model_table(console)
    if options.json:
        options.json.write_text(json.dumps({**found, "model": rows}, indent=1) + "\n")


def write_tables(root: Path, films: int, shards: int) -> Path:
    """Manifest and index of a training split; no shard exists."""
    (root / "train").mkdir()
    per_shard, rest = divmod(films, shards)
    sizes = [per_shard + (n < rest) for n in range(shards)]
    listed = [
        {"name": schema.shard_name(n), "samples": size, "bytes": size * 300_000, "sha256": "0" * 64}
        for n, size in enumerate(sizes)
    ]
    manifest = {
        "format_version": schema.FORMAT_VERSION,
        "settings": {"side": schema.IMAGE_SIDE},
        "splits": {"train": {"samples": films, "shards": listed}},
        "tables": {f"train/{schema.INDEX}": "0" * 64},
    }
    (root / schema.MANIFEST).write_text(json.dumps(manifest))
    index = root / "train" / schema.INDEX
    np.lib.format.open_memmap(index, "w+", dtype=np.dtype(schema.INDEX_DTYPE), shape=(films,))
    return root


def check_coverage(shards: ShardSet, options: Options) -> int:
    """Every film of the first epoch once; the number of global batches whose slices were put together."""
    order = SampleOrder(shards.shard_sizes, seed=0, window=WINDOW)
    is_seen_N = np.zeros(len(shards), dtype=bool)
    for first in range(0, len(shards), 2**20):
        position_B = np.arange(first, min(first + 2**20, len(shards)), dtype=np.int64)
        located = order.locate(position_B)
        is_seen_N[shards.row_starts[located.shard_N] + located.index_N] = True
    # As many positions as films: all seen means none twice.
    assert is_seen_N.all(), f"{(~is_seen_N).sum()} films do not come"
    batch = options.ranks * options.images_per_rank
    steps = np.random.default_rng(0).integers(0, 10 * len(shards) // batch, 32).tolist()
    for step in steps:
        slices = [
            rank_slice(step, batch, world_size=options.ranks, rank=rank, micro_step=micro, accumulation=2)
            for micro in range(2)
            for rank in range(options.ranks)
        ]
        assert np.array_equal(np.concatenate(slices), np.arange(step * batch, (step + 1) * batch))
    return len(steps)


def start_of_a_rank(root: Path, options: Options) -> dict[str, Any]:
    """Seconds and MB that the tables cost one rank, which begins somewhere in the run."""
    before = private_mb()
    started = time.process_time()
    shards = open_shards(root, "train", check_files=False)
    opened = time.process_time()
    expect_random_reads(shards)
    order = SampleOrder(shards.shard_sizes, seed=0, window=WINDOW)
    batch = options.ranks * options.images_per_rank
    step = 3 * len(shards) // batch + 5

    def rows(step: int) -> np.ndarray:
        position_B = rank_slice(
            step, batch, world_size=options.ranks, rank=options.ranks - 1, micro_step=0, accumulation=1
        )
        located = order.locate(position_B)
        return shards.rows[shards.row_starts[located.shard_N] + located.index_N]

    rows(step)
    first = time.process_time()
    steps = 200
    for later in range(step + 1, step + 1 + steps):
        rows(later)
    ended = time.process_time()
    return {
        "open_seconds": opened - started,
        "first_batch_seconds": first - opened,
        "film_seconds": (ended - first) / (steps * options.images_per_rank),
        "private_mb": private_mb() - before,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def private_mb() -> float:
    """Memory of this process that it shares with no other and no file, MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("no RssAnon in /proc/self/status")


def hash_rate() -> float:
    """Bytes/s of SHA-256 on this core."""
    content = bytes(HASHED_BYTES)
    started = time.process_time()
    hashlib.sha256(content)
    return HASHED_BYTES / (time.process_time() - started)


def model_table(console: Console) -> list[dict[str, Any]]:
    config, cluster = vit_l_1280(), Cluster()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MAE(config).parameters())
    table = Table(
        "GPUs", "ZeRO", "batch", "compute s", "traffic s", "efficiency", "checkpoint s", "then checksums s"
    )
    rows = []
    for batch in (1024, 8192):
        for ranks in RANKS:
            for stage in (1, 2, 3):
                step = modelled(
                    stage,
                    ranks,
                    parameters=parameters,
                    flops_per_image=work(config).training,
                    batch=batch,
                    micro_batch=config.train.micro_batch,
                    cluster=cluster,
                )
                low, high = step.efficiency
                table.add_row(
                    *(str(ranks), str(stage), str(batch), f"{step.compute_seconds:.3f}"),
                    *(f"{step.communication_seconds:.3f}", f"{100 * low:.0f} - {100 * high:.0f}%"),
                    *(f"{step.checkpoint_seconds:.1f}", f"{step.checksum_seconds:.1f}"),
                )
                rows.append({"ranks": ranks, "stage": stage, "batch": batch, **dataclasses.asdict(step)})
    console.print(
        f"{parameters / 1e6:.0f} M parameters, {work(config).training / 1e12:.2f} TFLOP per image; "
        "efficiency from nothing overlapping to all that can. Published: NeMo CLIP 92.5% at 128 GPUs, "
        "CLAP 84 to 87% at 512."
    )
    console.print(table)
    return rows


if __name__ == "__main__":
    main()
