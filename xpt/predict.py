"""What a fine-tuned model says of every film or study of a data set, labelled or not, as Parquet files.

    xpt-predict RUN SHARDS --out PREDICTIONS
    srun xpt-predict RUN SHARDS --out PREDICTIONS

Of a run that recognises findings: a row per film with the columns `logit:NAME` and `probability:NAME`. Of a
run that writes reports: a row per study that has a frontal film, with the columns `report:LANGUAGE`. Given
again, the command goes on where it was stopped; the processes of `srun` or `torchrun` share the work.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import tyro

from xpt.data.groups import Groups
from xpt.data.index import ShardSet, manifest_hash, open_splits
from xpt.data.loader import BatchLoader
from xpt.data.samples import patients_of
from xpt.evaluation.predictions import probabilities
from xpt.files import sha256_of
from xpt.finetune_config import FinetuneConfig
from xpt.parts import FILM, Part, PartOptions, Parts, share
from xpt.tasks.best import TrainedClassifier, TrainedWriter, best_of, load_trained
from xpt.tasks.report import counted_studies, study_input
from xpt.tasks.studies import read_unreported
from xpt.training.batches import whole_frames
from xpt.training.distributed import Rank

STUDY = ("study", "patient", "split")


@dataclass(frozen=True, kw_only=True)
class Options(PartOptions):
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of xpt-finetune."""
    shards: Annotated[Path, tyro.conf.Positional]
    """Data set of xpt-shards."""


class Work(NamedTuple):
    """All that is to be said of some splits."""

    inputs: dict[str, int]
    """Number of films, or studies, in each."""
    schema: pa.Schema
    tables: Callable[[Part], Iterator[pa.Table]]
    """The rows of a part."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    share("xpt-predict", lambda rank: predict(options, rank))


def predict(options: Options, rank: Rank) -> int:
    """A row per film, or per study with a frontal film, but for those whose first film is damaged.

    Returns:
        The number of rows that this rank made now.

    Raises:
        ValueError: `run` has no model, `out` holds something else, or the data set cannot be read.
        DataError: its file system does not answer.
    """
    options.check()
    best, splits = best_of(options.run), open_splits(options.shards, options.split)
    weights = sha256_of(best)
    made_of = {"data set": manifest_hash(options.shards), "weights": weights}
    parts = Parts(options.out, most=options.part, made_of=made_of, rank=rank)
    trained = load_trained(options.run, rank.device)
    if sha256_of(best) != weights:
        raise ValueError(f"{best}: changed while it was read; wait for the end of its run")
    if isinstance(trained, TrainedWriter):
        work = reports(trained, splits, rank, options.batch)
    else:
        work = findings(trained, splits, rank, options.batch)
    return parts.write(work.inputs, work.tables, work.schema)


def findings(trained: TrainedClassifier, splits: dict[str, ShardSet], rank: Rank, size: int) -> Work:
    """Of films, `size` at a time."""
    patient_of = patients_of(splits.values())
    columns = [f"{what}:{name}" for what in ("logit", "probability") for name in trained.map.findings]
    text, number = [(name, pa.string()) for name in FILM], [(name, pa.float32()) for name in columns]
    schema = pa.schema(text + number)

    def tables(part: Part) -> Iterator[pa.Table]:
        with batches_of(part, splits[part.split], trained.config, rank, size) as batches:
            for batch in batches:
                kept = batch.counted
                with torch.no_grad():
                    logit_BC = trained.model(batch.image_BCHW, batch.is_valid_BL)[kept]
                logit_BC = logit_BC.double().cpu().numpy()
                values = np.concatenate([logit_BC, probabilities(logit_BC, trained.map.kind)], 1)
                texts = part.film_columns([batch.keys[row] for row in kept], patient_of)
                columns = (*texts, *values.astype(np.float32).T)
                yield pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)

    return Work({name: len(films) for name, films in splits.items()}, schema, tables)


def reports(trained: TrainedWriter, splits: dict[str, ShardSet], rank: Rank, size: int) -> Work:
    """Of studies, `size` at a time. Raises ValueError where no split has one with a frontal film."""
    settings = trained.config.report
    read = {name: read_unreported(films, settings) for name, films in splits.items()}
    studies = {name: of_split for name, of_split in read.items() if of_split is not None}
    if not studies:
        raise ValueError(f"no study of {', '.join(splits)} has a frontal film; there is nothing to report on")
    columns = [f"report:{language}" for language in settings.languages]
    schema = pa.schema([(name, pa.string()) for name in (*STUDY, *columns)])

    def tables(part: Part) -> Iterator[pa.Table]:
        of_split = studies[part.split]
        with batches_of(part, of_split.shards, trained.config, rank, size, of_split.groups) as batches:
            for batch in batches:
                inputs, counted = study_input(of_split, batch), counted_studies(of_split, batch)
                with torch.no_grad():
                    memory = trained.model.remember(*inputs.films).of(counted)
                rows = [inputs.rows[place] for place in counted]
                told = [
                    trained.writer.reports(trained.model, memory, language) if rows else []
                    for language in settings.languages
                ]
                names = [of_split.names[row] for row in rows]
                patients = [of_split.patients[row] for row in rows]
                texts = (names, patients, [part.split] * len(rows), *told)
                yield pa.Table.from_arrays([pa.array(text, pa.string()) for text in texts], schema=schema)

    return Work({name: len(of_split) for name, of_split in studies.items()}, schema, tables)


def batches_of(
    part: Part, films: ShardSet, config: FinetuneConfig, rank: Rank, size: int, groups: Groups | None = None
) -> BatchLoader:
    """All of a part, on this rank alone, however many are damaged: what is left out is counted."""
    config = replace(config, data=replace(config.data, max_bad_share=1.0))
    batch = min(size, part.count)
    return whole_frames(films, config, rank, batch=batch, first=part.first, films=part.count, groups=groups)


if __name__ == "__main__":
    main()
