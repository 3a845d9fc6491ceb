"""From the tar file to decoded tensors, per core, beside webdataset with its own decoder.

    OMP_NUM_THREADS=1 python -m benchmarks.loader [--films 48] [--rounds 3] [--json FILE]

Films of 1280 x 1280 in JPEG of quality 95, made by the shard tool. Ours is the loader of training: checksums,
image and contour decoded, batches of 8. webdataset reads the same tar and decodes image and contour by
Pillow, to an 8-bit array ("l8"), to a float tensor ("torchl") or, as most people write it, to three channels
("torchrgb"); simplejpeg is the fastest decoder that one can hand to it. Process time, all threads.
"""

import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import tyro
import webdataset
from rich.console import Console
from rich.table import Table

from benchmarks.shards import _write_films
from benchmarks.timing import in_turns
from shards_tool.build import build
from shards_tool.settings import BuildSettings
from xpt.config import DataConfig
from xpt.data.index import open_shards
from xpt.data.loader import BatchLoader, train_loader

SIDE, BATCH = 1280, 8
MAX_DIFFERENCE = 1.0
"""Mean grey levels between two decoders of one JPEG."""


@dataclass(frozen=True, kw_only=True)
class Options:
    films: int = 48
    rounds: int = 3
    json: Path | None = None
    """File to write the results to."""


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        root = make_shards(Path(folder), options.films)
        tars = [str(path) for path in sorted((root / "train").glob("*.tar"))]
        with loader(root) as batches:
            worst = difference(batches, tars)
            assert worst <= MAX_DIFFERENCE, f"pictures differ by {worst:.2f} grey levels"
            console.print(
                f"oracle: the loader's pictures are webdataset's (mean difference {worst:.3f} of 255)"
            )
            variants: dict[str, Callable[[], object]] = {
                "ours": lambda: list(itertools.islice(batches, options.films // BATCH)),
                "webdataset, l8": lambda: list(plain(tars, "l8")),
                "webdataset, torchl": lambda: list(plain(tars, "torchl")),
                "webdataset, torchrgb": lambda: list(plain(tars, "torchrgb")),
                "webdataset with simplejpeg": lambda: list(plain(tars, _simplejpeg, "l8")),
            }
            found = in_turns(variants, options.rounds)
    films = options.films // BATCH * BATCH
    table = Table("reader", "ms per film", "films/s and core", "ours against it")
    rates = {name: (films if name == "ours" else options.films) / seconds for name, seconds in found.items()}
    for name, rate in rates.items():
        table.add_row(name, f"{1e3 / rate:.2f}", f"{rate:.0f}", f"{rates['ours'] / rate:.2f} x")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1) + "\n")


def make_shards(folder: Path, films: int) -> Path:
    source = _write_films(folder / "films", "PNG", films)
    key_file = folder / "key"
    key_file.write_text("0" * 64)
    settings = BuildSettings(side=SIDE, quality=95, fractions=(1, 0, 0))
    build([source], folder / "shards", settings, key_file=key_file, workers=0)
    return folder / "shards"


def loader(root: Path) -> BatchLoader:
    """Whole films, one thread that reads and one that decodes."""
    return train_loader(
        open_shards(root, "train"),
        DataConfig(crop_scale=(1.0, 1.0), threads=1, readers=1),
        side=SIDE,
        patch=16,
        seed=0,
        batch=BATCH,
        world_size=1,
        rank=0,
        accumulation=1,
        start=0,
        device=torch.device("cpu"),
    )


def plain(tars: list[str], *decoders: object) -> webdataset.WebDataset:
    return webdataset.WebDataset(tars, shardshuffle=False).decode(*decoders)


def _simplejpeg(key: str, data: bytes) -> np.ndarray | None:
    return simplejpeg.decode_jpeg(data, colorspace="GRAY") if key == ".jpg" or key.endswith("jpg") else None


def difference(batches: BatchLoader, tars: list[str]) -> float:
    """Mean grey levels between the two, over one batch."""
    theirs = {sample["__key__"]: sample["jpg"] for sample in plain(tars, "l8")}
    batch = next(batches)
    return float(
        np.mean(
            [
                np.abs(ours.float().numpy() - theirs[key].astype(np.float32)).mean()
                for key, ours in zip(batch.keys, batch.image_BCHW[:, 0], strict=True)
            ]
        )
    )


if __name__ == "__main__":
    main()
