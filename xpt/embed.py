"""Features of every film of a data set, as a folder of Parquet files.

    xpt-embed SHARDS --model OUT --out FEATURES
    srun xpt-embed SHARDS --model OUT --out FEATURES

OUT is a folder that xpt-export made. Given again, the command goes on where it was stopped; the processes of
`srun` or `torchrun` share the films. Shape suffixes: B films, L patches, D width.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import timm
import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from kernels.patches import normalize_pixels
from xpt.config import DataConfig
from xpt.data.batch import Batch
from xpt.data.index import manifest_hash, open_splits
from xpt.data.loader import evaluation_loader
from xpt.data.samples import patients_of
from xpt.files import sha256_of
from xpt.models.classifier import mean_of_valid
from xpt.models.mae import PIXEL_MEAN, PIXEL_STD
from xpt.parts import FILM, Part, PartOptions, Parts, share
from xpt.training.distributed import Rank

WEIGHTS = "model.safetensors"
"""In the folder of xpt-export."""


@dataclass(frozen=True, kw_only=True)
class Options(PartOptions):
    """`out` gets key, patient, split, and the features `cls` and `mean`, [D] float32 each."""

    shards: Annotated[Path, tyro.conf.Positional]
    """Data set of xpt-shards."""
    model: Path
    """Folder of xpt-export."""
    crop_to: Literal["frame", "chest"] | None = None
    """What is shown of each film; by default what the model was trained on (`data.crop_to`)."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    share("xpt-embed", lambda rank: embed(options, rank))


def embed(options: Options, rank: Rank) -> int:
    """One row per film, but for those that are damaged.

    `cls` is the class token, `mean` the mean of the tokens of patches that are not letterbox bars. Films are
    shown as in the training of the model unless `crop_to` says otherwise.

    Returns:
        The number of rows that this rank made now.

    Raises:
        ValueError: `model` is no folder of xpt-export, `out` holds something else, or the data set cannot be
            read.
        DataError: its file system does not answer.
    """
    options.check()
    settings, trained_on = _settings_of(options.model)
    # However many are damaged: what is left out is counted.
    data = DataConfig(crop_to=options.crop_to or trained_on, max_bad_share=1.0)
    splits = open_splits(options.shards, options.split)
    made_of = {
        "data set": manifest_hash(options.shards),
        "--model": sha256_of(options.model / WEIGHTS),
        "--crop_to": data.crop_to,
    }
    parts = Parts(options.out, most=options.part, made_of=made_of, rank=rank)
    patient_of = patients_of(splits.values())
    encoder: nn.Module = timm.create_model(f"local-dir:{options.model}", pretrained=True)
    encoder.eval().to(rank.device)
    vector = pa.list_(pa.float32(), settings["embed_dim"])
    schema = pa.schema([*((name, pa.string()) for name in FILM), ("cls", vector), ("mean", vector)])

    def tables(part: Part) -> Iterator[pa.Table]:
        batches = evaluation_loader(
            splits[part.split],
            data,
            side=settings["img_size"],
            patch=settings["patch_size"],
            batch=min(options.batch, part.count),
            first=part.first,
            films=part.count,
            device=rank.device,
        )
        with batches:
            for batch in batches:
                cls_BD, mean_BD = _features(encoder, batch)
                kept = batch.counted
                texts = part.film_columns([batch.keys[row] for row in kept], patient_of)
                columns = (*texts, _column(cls_BD[kept]), _column(mean_BD[kept]))
                yield pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)

    return parts.write({name: len(films) for name, films in splits.items()}, tables, schema)


def _settings_of(folder: Path) -> tuple[dict[str, Any], Literal["frame", "chest"]]:
    """The arguments that timm makes the encoder with, and what it was shown of each film."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"--model {folder}: no config.json; make the folder with: xpt-export RUN {folder}")
    content = json.loads(path.read_bytes())
    if "crop_to" not in content:
        raise ValueError(f"--model {folder}: its config.json has no crop_to, so it is not of xpt-export")
    return content["model_args"], content["crop_to"]


@torch.no_grad()
def _features(encoder: nn.Module, batch: Batch) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """Class tokens, and means of the patches that show film."""
    forward_features: Any = encoder.forward_features
    tokens_BND: Tensor = forward_features(normalize_pixels(batch.image_BCHW, PIXEL_MEAN, PIXEL_STD))
    return tokens_BND[:, 0], mean_of_valid(tokens_BND[:, 1:], batch.is_valid_BL)


def _column(values_BD: Float[Tensor, "B D"]) -> pa.Array:
    flat = pa.array(values_BD.float().cpu().numpy().ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values_BD.shape[1])


if __name__ == "__main__":
    main()
