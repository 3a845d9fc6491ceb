"""What a fine-tuned model says of every film or study of a data set, labelled or not, as Parquet files.

    xpt-predict RUN SHARDS --out PREDICTIONS
    srun xpt-predict RUN SHARDS --out PREDICTIONS

Of a run that recognises findings: a row per film with the columns `logit:NAME` and `probability:NAME`. Of a
run that writes reports: a row per study that has a frontal film, with the columns `report:LANGUAGE`. Given
again, the command goes on where it was stopped; the processes of `srun` or `torchrun` share the work.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import tyro

from xpt.data.groups import Groups
from xpt.data.index import ShardSet, filled_splits, manifest_hash, open_shards
from xpt.data.loader import BatchLoader
from xpt.data.reader import DataError
from xpt.data.samples import read_patients
from xpt.evaluation.predictions import probabilities
from xpt.files import sha256_of
from xpt.finetune_config import FinetuneConfig
from xpt.parts import Part, parts_of, write_parts
from xpt.tasks.best import BEST, load_classifier, load_writer, read_best
from xpt.tasks.report import study_input
from xpt.tasks.studies import read_unreported
from xpt.training.batches import whole_frames
from xpt.training.distributed import Rank, place
from xpt.training.telemetry import set_up_logging

log = logging.getLogger("xpt")
FILM = ("key", "patient", "split")
STUDY = ("study", "patient", "split")


@dataclass(frozen=True, kw_only=True)
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of xpt-finetune."""
    shards: Annotated[Path, tyro.conf.Positional]
    """Data set of xpt-shards."""
    out: Path
    """Folder to write."""
    split: Literal["train", "val", "test", "all"] = "all"
    batch: int = 8
    """Films, or studies, per forward pass."""
    part: int = 4096
    """Films, or studies, per file; one that was begun when the program was stopped is made again."""


class Work(NamedTuple):
    """All that is to be said of some splits."""

    inputs: dict[str, int]
    """Number of films, or studies, in each."""
    schema: pa.Schema
    tables: Callable[[Part], Iterator[pa.Table]]
    """The rows of a part."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        rank = place()
        set_up_logging(rank.index)
        rows = predict(options, rank)
    except (ValueError, OSError, DataError) as error:
        raise SystemExit(f"xpt-predict: {error}") from error
    log.info("%s: %s rows made", options.out, f"{rows:,}")


def predict(options: Options, rank: Rank) -> int:
    """Films that are damaged are left out, with a warning by the loader.

    Returns:
        The number of rows that this rank made now.

    Raises:
        ValueError: `run` has no model, `out` holds something else, or the data set cannot be read.
    """
    writes = read_best(options.run)[0].task == "report"
    names = filled_splits(options.shards) if options.split == "all" else [options.split]
    splits = {name: open_shards(options.shards, name, check_files=rank.is_first) for name in names}
    work = (reports if writes else findings)(options, splits, rank)
    made_of: dict[str, str | int] = {
        "data set": manifest_hash(options.shards),
        "model": sha256_of(options.run / BEST),
        "rows per file": options.part,
    }
    parts = parts_of(work.inputs, options.part)
    return write_parts(options.out, parts, work.tables, schema=work.schema, made_of=made_of, rank=rank)


def findings(options: Options, splits: dict[str, ShardSet], rank: Rank) -> Work:
    """Of films."""
    trained = load_classifier(options.run, rank.device)
    patient_of = {key: patient for films in splits.values() for key, patient in read_patients(films).items()}
    columns = [f"{what}:{name}" for what in ("logit", "probability") for name in trained.map.findings]
    text, number = [(name, pa.string()) for name in FILM], [(name, pa.float32()) for name in columns]
    schema = pa.schema(text + number)

    def tables(part: Part) -> Iterator[pa.Table]:
        with batches_of(part.of(splits[part.split]), trained.config, rank, options.batch) as batches:
            for batch in batches:
                with torch.no_grad():
                    logit_BC = trained.model(batch.image_BCHW, batch.is_valid_BL)[batch.counted]
                logit_BC = logit_BC.double().cpu().numpy()
                values = np.concatenate([logit_BC, probabilities(logit_BC, trained.map.kind)], 1)
                keys = [batch.keys[row] for row in batch.counted]
                texts = (keys, [patient_of[key] for key in keys], [part.split] * len(keys))
                columns = (*texts, *values.astype(np.float32).T)
                yield pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)

    return Work({name: len(films) for name, films in splits.items()}, schema, tables)


def reports(options: Options, splits: dict[str, ShardSet], rank: Rank) -> Work:
    """Of studies."""
    trained = load_writer(options.run, rank.device)
    settings = trained.config.report
    studies = {name: read_unreported(films, settings) for name, films in splits.items()}
    columns = [f"report:{language}" for language in settings.languages]
    schema = pa.schema([(name, pa.string()) for name in (*STUDY, *columns)])

    def tables(part: Part) -> Iterator[pa.Table]:
        some = studies[part.split].between(part.first, part.last)
        with batches_of(some.shards, trained.config, rank, options.batch, some.groups) as batches:
            for batch in batches:
                inputs = study_input(some, batch)
                with torch.no_grad():
                    memory = trained.model.remember(*inputs.films).of(inputs.counted)
                rows = [inputs.rows[place] for place in inputs.counted]
                told = [
                    trained.writer.reports(trained.model, memory, language) if rows else []
                    for language in settings.languages
                ]
                names, patients = [some.names[row] for row in rows], [some.patients[row] for row in rows]
                texts = (names, patients, [part.split] * len(rows), *told)
                yield pa.Table.from_arrays([pa.array(text, pa.string()) for text in texts], schema=schema)

    return Work({name: len(of_split) for name, of_split in studies.items()}, schema, tables)


def batches_of(
    films: ShardSet, config: FinetuneConfig, rank: Rank, batch: int, groups: Groups | None = None
) -> BatchLoader:
    """All of a part, on this rank alone."""
    inputs = len(films if groups is None else groups)
    return whole_frames(films, config, rank, batch=min(batch, inputs), groups=groups)


if __name__ == "__main__":
    main()
