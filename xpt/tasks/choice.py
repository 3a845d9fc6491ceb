"""The task that a configuration names."""

from xpt.data.index import ShardSet
from xpt.finetune_config import FinetuneConfig
from xpt.tasks.recognition import Recognition
from xpt.tasks.report import ReportWriting


def task_of(config: FinetuneConfig, train_set: ShardSet, val_set: ShardSet) -> Recognition | ReportWriting:
    """Raises ValueError where the data do not fit the configuration."""
    kind = {"recognition": Recognition, "report": ReportWriting}[config.task]
    return kind(config, train_set, val_set)
