"""The progress bar of all commands."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Bar:
    """One line: what is counted, how far, how fast, how long still, and a note."""

    def __init__(self, progress: Progress, description: str, total: int | None, unit: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, unit=unit, note="")

    def advance(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "")


@contextlib.contextmanager
def progress_bar(description: str, *, total: int | None, unit: str = "films") -> Iterator[Bar]:
    """Show a bar on standard error while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress, description, total, unit)
