"""The best weights of a fine-tuning run, and what they say about validation and test films."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xpt.data.index import open_shards
from xpt.data.labels import LabelMap, label_map
from xpt.evaluation.predictions import Predictions
from xpt.finetune_config import FinetuneConfig, from_json
from xpt.models.classifier import Classifier
from xpt.models.init import read_saved
from xpt.models.report_model import ReportModel
from xpt.tasks.recognition import Labelled, Recognition, classifier_of, predict
from xpt.tasks.writer import TOKENIZER, Writer
from xpt.text.tokenizer import ReportTokenizer
from xpt.training.batches import whole_frames
from xpt.training.distributed import Rank

BEST = "best.pt"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A run's model with its task, on the data set that it was trained on or another."""

    config: FinetuneConfig
    task: Recognition
    model: Classifier

    def predict(self, split: Labelled, rank: Rank) -> Predictions:
        with whole_frames(split.shards, self.config, rank) as batches:
            return predict(self.model, batches, split, self.task.map)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedClassifier:
    """A run's model that recognises findings, without data."""

    config: FinetuneConfig
    map: LabelMap
    """What its outputs mean."""
    model: Classifier


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedWriter:
    """A run's model that writes reports."""

    config: FinetuneConfig
    """Its `run_dir` is where the run lies now."""
    writer: Writer
    model: ReportModel
    images: int
    """Studies, when the weights were the best."""


def best_of(run: Path) -> Path:
    """The file of the best weights. Raises ValueError where there is none."""
    path = run / BEST
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted a run folder of xpt-finetune that has validated")
    return path


def read_best(run: Path) -> tuple[FinetuneConfig, dict[str, Any]]:
    """The configuration of a run, and all that is in its `best.pt`.

    Raises ValueError where there is none, or where it is damaged.
    """
    content = read_saved(best_of(run))
    return from_json(content["config"]), content


def load_trained(run: Path, device: torch.device) -> TrainedClassifier | TrainedWriter:
    """The model of `RUN/best.pt`; needs no data.

    Raises ValueError where there is none, where it is damaged, or does not fit what lies beside it.
    """
    config, content = read_best(run)
    return (_writer if config.task == "report" else _classifier)(run, config, content, device)


def load_writer(run: Path, device: torch.device) -> TrainedWriter:
    """As `load_trained`; raises ValueError where the run is of another task, too."""
    trained = load_trained(run, device)
    if not isinstance(trained, TrainedWriter):
        raise ValueError(f"{run}: a run of the task recognition; wanted one of: xpt-finetune --task report")
    return trained


def _writer(
    run: Path, config: FinetuneConfig, content: dict[str, Any], device: torch.device
) -> TrainedWriter:
    writer = Writer(config.report, ReportTokenizer.load(run / TOKENIZER, content["tokenizer"]))
    model = writer.model(config.model)
    model.load_state_dict(content["model"])
    return TrainedWriter(
        config=dataclasses.replace(config, run_dir=str(run)),
        writer=writer,
        model=model.to(device).eval(),
        images=content["images"],
    )


def with_data(found: TrainedClassifier, data: str) -> Trained:
    """`data` is the folder of shards, "" for that of the run. Raises ValueError where it is gone."""
    root = Path(data or found.config.data.path)
    task = Recognition(found.config, open_shards(root, "train"), open_shards(root, "val"))
    return Trained(config=found.config, task=task, model=found.model)


def _classifier(
    run: Path, config: FinetuneConfig, content: dict[str, Any], device: torch.device
) -> TrainedClassifier:
    settings = config.recognition
    mapped = label_map(settings.label_map, settings.findings, settings.kind)
    if list(mapped.findings) != content["findings"]:
        raise ValueError(
            f"{run / BEST}: learned {', '.join(content['findings'])}; the label map {settings.label_map} "
            f"has {', '.join(mapped.findings)} now. Fine-tune again."
        )
    model = classifier_of(config.model, settings, mapped)
    model.load_state_dict(content["model"])
    return TrainedClassifier(config=config, map=mapped, model=model.to(device).eval())
