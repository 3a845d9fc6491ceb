"""Test a fine-tuned model: predictions, numbers with intervals, one page.

    xpt-evaluate RUN [--against OTHER_RUN] [--boxes boxes.parquet]
    xpt-evaluate RUN [--protocol r2gen]                               where the run learned to write reports

Writes into RUN: `predictions-val.parquet`, `predictions-test.parquet` (of reports: `reports-test.jsonl`),
`evaluation.json` and `evaluation.html`. Where the data set has no test split, validation stands in for it,
and the page says so.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, UInt8

from xpt.data.index import select_rows
from xpt.data.reader import DataError
from xpt.evaluate_reports import evaluate_reports
from xpt.evaluation.heatmaps import heat_maps
from xpt.evaluation.localisation import Box, Found, judge, read_boxes, within
from xpt.evaluation.page import Example, page
from xpt.evaluation.predictions import Predictions, read_predictions, write_predictions
from xpt.evaluation.scores import compared, scores_of
from xpt.files import without_nan, write_atomically
from xpt.metrics import interval
from xpt.tasks.best import BEST, Trained, TrainedWriter, load_trained, with_data
from xpt.tasks.recognition import Labelled
from xpt.training import distributed
from xpt.training.batches import whole_frames
from xpt.training.distributed import Rank
from xpt.training.telemetry import set_up_logging

log = logging.getLogger("xpt")
FAILED = 2


@dataclass(frozen=True, kw_only=True)
class Options:
    run: tyro.conf.Positional[Path]
    """Run folder of xpt-finetune."""
    data: str = ""
    """Shards to test on; empty: those that the run was trained on."""
    against: Path | None = None
    """Another run, evaluated on the same films, for a paired test."""
    boxes: Path | None = None
    """Boxes of `xpt-shards boxes`: how well the heat maps point at them."""
    examples: int = 2
    """Films on the page per finding: as many of the surest right ones, and of the surest wrong ones; of
    reports, four times as many studies."""
    protocol: Literal["whole", "r2gen", "r2gen_mimic"] = "whole"
    """Of reports: `r2gen` adds the published scores of English ones, cut after 60 words (`r2gen_mimic`: 100)
    with rare words unknown, to those of whole references."""


def main() -> None:
    set_up_logging(0)
    try:
        evaluate(tyro.cli(Options, description=__doc__), distributed.start())
    except (ValueError, OSError, DataError) as error:
        log.error("%s", error)
        sys.exit(FAILED)
    finally:
        distributed.stop()


def evaluate(options: Options, rank: Rank) -> dict[str, Any]:
    """Everything, on this process alone; returns what it wrote as JSON."""
    run = options.run
    found = load_trained(run, rank.device) if (run / BEST).exists() else None
    if isinstance(found, TrainedWriter):
        return _evaluate_writer(options, found, rank)
    if options.protocol != "whole":
        raise ValueError("--protocol: of runs that write reports, and this one recognises findings")
    trained, splits = None, {}
    if found is not None:
        trained = with_data(found, options.data)
        splits = {split.shards.split: split for split in trained.task.evaluated()}
        for name, split in splits.items():
            write_predictions(run / f"predictions-{name}.parquet", trained.predict(split, rank))
    elif options.data:
        raise ValueError(f"--data: {run} has no {BEST}; a probe without training predicts as it is fitted")
    val = read_predictions(run / "predictions-val.parquet")
    # What an evaluation of other shards left there does not count.
    has_test = "test" in splits if trained else (run / "predictions-test.parquet").exists()
    name = "test" if has_test else "val"
    test = read_predictions(run / f"predictions-{name}.parquet")
    scores = {"split": name, **scores_of(val, test)}
    if options.against is not None:
        theirs = read_predictions(options.against / f"predictions-{name}.parquet")
        scores["against"] = {"run": str(options.against), **compared(test, theirs)}
    examples: list[Example] = []
    if trained is not None:
        split = splits[name]
        if options.boxes is not None:
            boxes = read_boxes(options.boxes, split.shards.side)
            scores["localisation"] = localisation(trained, split, test, boxes, rank)
        examples = pictures(trained, split, test, options.examples, rank)
    elif options.boxes is not None:
        raise ValueError(f"--boxes: {run} has no {BEST}, and a probe without training has no heat maps")
    write_atomically(run / "evaluation.json", json.dumps(without_nan(scores), indent=1) + "\n")
    write_atomically(run / "evaluation.html", page(run.name, scores, val, test, examples))
    mean = scores["mean"]["auroc"]
    log.info(
        "%s, %s films: mean AUROC %.4f (95%%: %.4f to %.4f) over %d of %d findings; look at %s",
        name,
        f"{len(test.keys):,}",
        mean["value"],
        mean["low"],
        mean["high"],
        mean["findings"],
        len(test.findings),
        run / "evaluation.html",
    )
    return scores


def _evaluate_writer(options: Options, trained: TrainedWriter, rank: Rank) -> dict[str, Any]:
    if options.against is not None or options.boxes is not None:
        raise ValueError("--against, --boxes: of recognition only, and this run writes reports")
    return evaluate_reports(
        trained,
        rank,
        data=options.data,
        protocol=options.protocol,
        examples=4 * options.examples,
    )


def localisation(
    trained: Trained,
    split: Labelled,
    test: Predictions,
    boxes: dict[tuple[str, str], list[Box]],
    rank: Rank,
) -> dict[str, Any]:
    """Per finding: the share of films whose hottest patch lies in a box, and the mean overlap.

    Raises ValueError where no film of the split has a box of a finding.
    """
    patient_of = dict(zip(test.keys, test.patients, strict=True))
    wanted = {key for key, finding in boxes if key in patient_of and finding in test.findings}
    if not wanted:
        raise ValueError(
            f"--boxes: none is of a film of split {split.shards.split} and of {', '.join(test.findings)}"
        )
    judged: dict[str, dict[str, Found]] = {name: {} for name in test.findings}
    for heat in film_heats(trained, split, wanted, rank):
        if (heat.key, heat.finding) in boxes:
            shown = within(heat.window_4, boxes[heat.key, heat.finding])
            judged[heat.finding][heat.key] = judge(heat.heat_GG, shown)
    rows = {}
    for name, films in judged.items():
        if not films:
            continue
        patients = [patient_of[key] for key in films]
        hit_N, iou_N = (
            np.array([getattr(f, what) for f in films.values()], float) for what in ("hit", "iou")
        )
        rows[name] = {
            "films": len(films),
            "hit": dataclasses.asdict(interval(lambda w, x=hit_N: w @ x / w.sum(1), patients)),
            "iou": dataclasses.asdict(interval(lambda w, x=iou_N: w @ x / w.sum(1), patients)),
            "area": float(np.mean([f.area for f in films.values()])),
        }
    return rows


def pictures(trained: Trained, split: Labelled, test: Predictions, count: int, rank: Rank) -> list[Example]:
    """The surest right and the surest wrong positives of each finding."""
    probability_NC = test.probabilities()
    row_of = {key: row for row, key in enumerate(test.keys)}
    wanted: list[tuple[str, str, bool]] = []
    for c, name in enumerate(test.findings):
        order = np.argsort(-probability_NC[:, c])
        for is_positive in (True, False):
            rows = [row for row in order if test.target_NC[row, c] == is_positive]
            wanted += [(test.keys[row], name, is_positive) for row in rows[:count]]
    if not wanted:
        return []
    keys = {key for key, _, _ in wanted}
    shown = {(heat.key, heat.finding): heat for heat in film_heats(trained, split, keys, rank)}
    return [
        Example(
            key=key,
            finding=name,
            probability=float(probability_NC[row_of[key], test.findings.index(name)]),
            is_positive=is_positive,
            image_HW=shown[key, name].image_HW,
            heat_GG=shown[key, name].heat_GG,
        )
        for key, name, is_positive in wanted
    ]


class FilmHeat(NamedTuple):
    """Where the model looked in a film for a finding."""

    key: str
    finding: str
    image_HW: UInt8[np.ndarray, "H W"]
    heat_GG: Float[np.ndarray, "G G"]
    window_4: Float[np.ndarray, "4"]
    """As `Batch.window_B4`."""


def film_heats(trained: Trained, split: Labelled, keys: set[str], rank: Rank) -> Iterator[FilmHeat]:
    """Each of the films and each finding."""
    is_wanted_N = np.array([key in keys for key in split.samples.keys])
    with whole_frames(select_rows(split.shards, is_wanted_N), trained.config, rank) as batches:
        for batch in batches:
            for c, finding in enumerate(trained.task.map.findings):
                heat_BGG = heat_maps(trained.model, batch.image_BCHW, batch.is_valid_BL, c).cpu().numpy()
                for film, key in enumerate(batch.keys):
                    if batch.weight_B[film]:
                        image_HW = batch.image_BCHW[film, 0].cpu().numpy()
                        yield FilmHeat(key, finding, image_HW, heat_BGG[film], batch.window_B4[film])


if __name__ == "__main__":
    main()
