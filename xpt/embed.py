"""Features of every film of a data set, as Parquet.

    xpt-embed SHARDS --model OUT --out features.parquet

OUT is a folder that xpt-export made. Shape suffixes: B films, L patches, D width.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from kernels.patches import normalize_pixels
from xpt.config import DataConfig
from xpt.data.index import ShardSet, filled_splits, open_shards
from xpt.data.loader import evaluation_loader
from xpt.data.reader import DataError
from xpt.data.samples import read_samples
from xpt.files import sync
from xpt.models.classifier import mean_of_valid
from xpt.models.mae import PIXEL_MEAN, PIXEL_STD
from xpt.training.telemetry import set_up_logging

log = logging.getLogger("xpt")


@dataclass(frozen=True, kw_only=True)
class Options:
    shards: Annotated[Path, tyro.conf.Positional]
    """Data set of xpt-shards."""
    model: Path
    """Folder of xpt-export."""
    out: Path
    """Parquet file to write: key, patient, split, and the features `cls` and `mean`, [D] float32 each."""
    split: Literal["train", "val", "test", "all"] = "all"
    crop_to: Literal["frame", "chest"] | None = None
    """What is shown of each film; by default what the model was trained on (`data.crop_to`)."""
    batch: int = 8
    """Films per forward pass."""


def main() -> None:
    set_up_logging(0)
    options = tyro.cli(Options, description=__doc__)
    try:
        films = embed(
            options.shards,
            options.model,
            options.out,
            split=options.split,
            crop_to=options.crop_to,
            batch=options.batch,
        )
    except (ValueError, OSError, DataError) as error:
        raise SystemExit(f"xpt-embed: {error}") from error
    log.info("%s: features of %s films", options.out, f"{films:,}")


def embed(
    shards: Path,
    model: Path,
    out: Path,
    *,
    split: str = "all",
    crop_to: Literal["frame", "chest"] | None = None,
    batch: int = 8,
) -> int:
    """Write one row per film to `out`; films that are damaged are left out, with a warning by the loader.

    `cls` is the class token, `mean` the mean of the tokens of patches that are not letterbox bars. Films are
    shown as in the training of `model` unless `crop_to` says otherwise.

    Returns:
        The number of rows.

    Raises:
        ValueError: `model` is no folder of xpt-export, `out` exists, or the data set cannot be read.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; give another file")
    encoder, settings, trained_on = _open_model(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    splits = filled_splits(shards) if split == "all" else [split]
    data = DataConfig(crop_to=crop_to or trained_on)
    width = settings["embed_dim"]
    vector = pa.list_(pa.float32(), width)
    schema = pa.schema(
        [("key", "string"), ("patient", "string"), ("split", "string"), ("cls", vector), ("mean", vector)]
    )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        with (
            pq.ParquetWriter(temporary, schema) as writer,
            Progress(console=Console(stderr=True)) as progress,
        ):
            for name in splits:
                films = open_shards(shards, name)
                task = progress.add_task(name, total=len(films))
                for table in _features(encoder, settings, films, data, schema, batch, device):
                    writer.write_table(table)
                    rows += len(table)
                    progress.advance(task, batch)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    sync(out.absolute().parent)
    return rows


def _open_model(folder: Path) -> tuple[nn.Module, dict[str, Any], Literal["frame", "chest"]]:
    """The encoder, the arguments that timm makes it with, and what it was shown of each film."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"--model {folder}: no config.json; make the folder with: xpt-export RUN {folder}")
    content = json.loads(path.read_bytes())
    if "crop_to" not in content:
        raise ValueError(f"--model {folder}: its config.json has no crop_to, so it is not of xpt-export")
    encoder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return encoder, content["model_args"], content["crop_to"]


def _features(
    encoder: nn.Module,
    settings: dict[str, Any],
    films: ShardSet,
    data: DataConfig,
    schema: pa.Schema,
    size: int,
    device: torch.device,
) -> Iterator[pa.Table]:
    """Tables of up to `size` rows of `schema`."""
    forward_features: Any = encoder.forward_features
    samples = read_samples(films)
    patient_of = dict(zip(samples.keys, samples.patients, strict=True))
    with (
        torch.no_grad(),
        evaluation_loader(
            films,
            data,
            side=settings["img_size"],
            patch=settings["patch_size"],
            batch=min(size, len(films)),
            device=device,
        ) as batches,
    ):
        for batch in batches:
            pixels = normalize_pixels(batch.image_BCHW, PIXEL_MEAN, PIXEL_STD)
            tokens_BND: Tensor = forward_features(pixels)
            mean_BD = mean_of_valid(tokens_BND[:, 1:], batch.is_valid_BL)
            kept = [row for row, weight in enumerate(batch.weight_B.tolist()) if weight > 0]
            keys = [batch.keys[row] for row in kept]
            yield pa.table(
                {
                    "key": keys,
                    "patient": [patient_of[key] for key in keys],
                    "split": [films.split] * len(keys),
                    "cls": tokens_BND[kept, 0].float().cpu().tolist(),
                    "mean": mean_BD[kept].float().cpu().tolist(),
                },
                schema=schema,
            )


if __name__ == "__main__":
    main()
