"""What the loop of fine-tuning asks of a task: recognition of findings, or reports."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from xpt.data.batch import Batch
from xpt.data.groups import Groups
from xpt.data.index import ShardSet


@runtime_checkable
class Films(Protocol):
    """The films of a split that a task uses."""

    @property
    def shards(self) -> ShardSet: ...

    @property
    def groups(self) -> Groups | None:
        """Films that are one input together; None: each by itself."""
        ...


@runtime_checkable
class Task(Protocol):
    @property
    def train(self) -> Films: ...

    @property
    def val(self) -> Films: ...

    @property
    def score(self) -> str:
        """Which of the numbers of `validate` the best weights are chosen by; higher is better."""
        ...

    @property
    def saved(self) -> dict[str, Any]:
        """What a model of this task must be used with again; it goes into `best.pt`."""
        ...

    def line(self) -> str:
        """What is learned, for the log."""
        ...

    def model(self) -> nn.Module:
        """With random weights; its encoder is `encoder`."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, "B"]]:
        """The mean, and each film's own, detached."""
        ...

    def validate(self, model: Any, batches: Iterable[Batch]) -> dict[str, float]:  # noqa: ANN401  the task's
        """Numbers by name; all ranks call it, with the same number of batches."""
        ...
