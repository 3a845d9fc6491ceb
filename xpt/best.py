"""The best weights of a fine-tuning run, and what they say about validation and test films."""

from dataclasses import dataclass
from pathlib import Path

from xpt.batches import whole_frames
from xpt.data.index import open_shards
from xpt.distributed import Rank
from xpt.finetune_config import FinetuneConfig, from_json
from xpt.models.classifier import Classifier
from xpt.models.init import read_saved
from xpt.predictions import Predictions
from xpt.tasks.recognition import Labelled, Recognition, predict

BEST = "best.pt"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A run's model with its task, on the data set that it was trained on or another."""

    config: FinetuneConfig
    task: Recognition
    model: Classifier
    images: int
    """When the weights were the best."""

    def predict(self, split: Labelled, rank: Rank) -> Predictions:
        with whole_frames(split.shards, self.config, rank) as batches:
            return predict(self.model, batches, split, self.task.map)


def load_best(run: Path, data: str, rank: Rank) -> Trained:
    """The model of `RUN/best.pt`; `data` is the folder of shards, "" for that of the run.

    Raises ValueError where there is none, where it is damaged, or where its data set is gone.
    """
    path = run / BEST
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted a run folder of xpt-finetune that has validated")
    content = read_saved(path)
    config = from_json(content["config"])
    root = Path(data or config.data.path)
    task = Recognition(config, open_shards(root, "train"), open_shards(root, "val"))
    if list(task.map.findings) != content["findings"]:
        raise ValueError(
            f"{path}: learned {', '.join(content['findings'])}; the label map {config.recognition.label_map} "
            f"has {', '.join(task.map.findings)} now. Fine-tune again."
        )
    model = task.model()
    model.load_state_dict(content["model"])
    return Trained(config=config, task=task, model=model.to(rank.device).eval(), images=content["images"])
