"""What a model says of every film of a data set, as a folder of Parquet files of some thousand films each.

A file appears whole or not at all, and one that is there is not made again: work that was stopped goes on
where it was, and the ranks of a job share the files. The folder is one table to pyarrow and pandas, and
`FOLDER/*.parquet` to DuckDB.
"""

import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from xpt.data.reader import DataError
from xpt.files import remove_torn, write_atomically
from xpt.training.distributed import Rank, place
from xpt.training.telemetry import set_up_logging

log = logging.getLogger("xpt")
MADE_OF = "_made_of.json"
"""In the folder: what its rows were made of, by name. Readers of a folder pass over names that begin so."""
FILM = ("key", "patient", "split")
"""Columns that tell which film a row is of."""
_SHOWN = 16
"""Characters of a hash."""


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """What every program that writes parts is told."""

    out: Path
    """Folder to write."""
    split: Literal["train", "val", "test", "all"] = "all"
    batch: int = 8
    """Films, or studies, per forward pass."""
    part: int = 4096
    """Films, or studies, per file; one that was begun when the program was stopped is made again."""

    def check(self) -> None:
        """Raises ValueError for a batch of less than one."""
        if self.batch < 1:
            raise ValueError(f"--batch: got {self.batch}, wanted at least 1")


@dataclass(frozen=True, kw_only=True)
class Part:
    """The inputs `first` to `first + count` - 1 of a split, in its order."""

    split: str
    first: int
    count: int

    @property
    def file(self) -> str:
        return f"{self.split}-{self.first:09d}.parquet"

    def film_columns(self, keys: list[str], patient_of: dict[str, str]) -> tuple[list[str], ...]:
        """The columns FILM of these films."""
        return keys, [patient_of[key] for key in keys], [self.split] * len(keys)


def share(program: str, work: Callable[[Rank], object]) -> None:
    """Do this process's share of the work; what a user did wrong ends it with a line, not a traceback."""
    try:
        rank = place()
        set_up_logging(rank.index)
        work(rank)
    except (ValueError, OSError, DataError) as error:
        raise SystemExit(f"{program}: {error}") from error


def _parts_of(inputs: dict[str, int], most: int) -> list[Part]:
    """Parts of at most `most` inputs each, given the number of inputs in every split."""
    return [
        Part(split=split, first=first, count=min(most, count - first))
        for split, count in inputs.items()
        for first in range(0, count, most)
    ]


class Parts:
    """A folder that this command began, or that is new; ranks do not wait for one another."""

    def __init__(self, out: Path, *, most: int, made_of: dict[str, str], rank: Rank) -> None:
        """
        Args:
            most: inputs per part.
            made_of: whatever the rows depend on. Parts of anything else are not mixed with these.

        Raises:
            ValueError: `out` holds something else, or `most` is below 1.
        """
        if most < 1:
            raise ValueError(f"--part: got {most}, wanted at least 1")
        self._out, self._most, self._rank = out, most, rank
        _begin(out, {**made_of, "--part": str(most)})

    def write(
        self, inputs: dict[str, int], tables: Callable[[Part], Iterator[pa.Table]], schema: pa.Schema
    ) -> int:
        """Make this rank's share of the parts that are not there yet.

        Args:
            inputs: number of films, or studies, in every split.
            tables: the rows of a part, in pieces, each of `schema`; damaged films have none.

        Returns:
            The number of rows that were made now, by this rank.
        """
        out, rank = self._out, self._rank
        parts = _parts_of(inputs, self._most)
        there = self._there(parts)
        if there:
            log.info("%s: %d of %d files are there already", out, there, len(parts))
        # By their place among all, so that ranks need not see the folder alike.
        own = [part for part in parts[rank.index :: rank.count] if not (out / part.file).exists()]
        rows = 0
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not rank.is_first) as progress:
            task = progress.add_task("rows", total=sum(part.count for part in own))
            for part in own:
                pieces = []
                for piece in tables(part):
                    pieces.append(piece)
                    progress.advance(task, len(piece))
                table = pa.concat_tables([schema.empty_table(), *pieces])
                buffer = io.BytesIO()
                pq.write_table(table, buffer)
                write_atomically(out / part.file, buffer.getvalue())
                rows += len(table)
                if len(table) < part.count:
                    log.warning(
                        "%s: %d of %d were left out, being damaged; once they are mended, remove the file "
                        "and give the same command again",
                        *(out / part.file, part.count - len(table), part.count),
                    )
        there = self._there(parts)
        log.info("%s: %s rows made by rank %d of %d", out, f"{rows:,}", rank.index, rank.count)
        log.info("%s: %d of %d files are there", out, there, len(parts))
        if there < len(parts):
            log.warning(
                "%s: %d files are not there yet: where no other rank makes them, give the same command again",
                *(out, len(parts) - there),
            )
        return rows

    def _there(self, parts: list[Part]) -> int:
        return sum((self._out / part.file).exists() for part in parts)


def _begin(out: Path, made_of: dict[str, str]) -> None:
    """Any rank may be the first."""
    path = out / MADE_OF
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file; wanted a folder, a new one or one that this command began")
    out.mkdir(parents=True, exist_ok=True)
    # Looked at in this order, because no part is written before MADE_OF.
    others = [other.name for other in out.iterdir() if not other.name.startswith(".")]
    if path.is_file():
        _check_same(path, made_of)
    elif others:
        raise ValueError(f"{out}: there is something else, such as {others[0]}; give a new folder")
    else:
        write_atomically(path, json.dumps(made_of, indent=1) + "\n")
    remove_torn(out)


def _check_same(path: Path, made_of: dict[str, str]) -> None:
    try:
        found = json.loads(path.read_bytes())
        earlier = {name: str(found[name]) for name in made_of}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or of another program ({error!r}); give a new folder") from error
    for name, now in made_of.items():
        if earlier[name] != now:
            raise ValueError(
                f"{path.parent}: begun with {name} {earlier[name][:_SHOWN]}, now it is {now[:_SHOWN]}; "
                "give the same again, or another folder"
            )
