"""What a model says of every film of a data set, as a folder of Parquet files of some thousand films each.

A file appears whole or not at all, and one that is there is not made again: work that was stopped goes on
where it was, and the ranks of a job share the files. The folder is one table to pyarrow, pandas and DuckDB.
"""

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from xpt.data.index import ShardSet, select_rows
from xpt.files import remove_torn, write_atomically
from xpt.training.distributed import Rank

log = logging.getLogger("xpt")
MADE_OF = "_made_of.json"
"""In the folder: what its rows were made of, by name. Readers of a folder pass over names that begin so."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The inputs `first` to `last` - 1 of a split, in its order."""

    split: str
    first: int
    last: int

    @property
    def file(self) -> str:
        return f"{self.split}-{self.first:09d}.parquet"

    def of(self, films: ShardSet) -> ShardSet:
        """The part of a split whose inputs are its films."""
        place_N = np.arange(len(films))
        return select_rows(films, (place_N >= self.first) & (place_N < self.last))


def parts_of(inputs: dict[str, int], most: int) -> list[Part]:
    """Parts of at most `most` inputs each, given the number of inputs in every split.

    Raises ValueError for fewer than one.
    """
    if most < 1:
        raise ValueError(f"--part: got {most}, wanted at least 1")
    return [
        Part(split=split, first=first, last=min(first + most, count))
        for split, count in inputs.items()
        for first in range(0, count, most)
    ]


def write_parts(
    out: Path,
    parts: Sequence[Part],
    tables: Callable[[Part], Iterator[pa.Table]],
    *,
    schema: pa.Schema,
    made_of: dict[str, str | int],
    rank: Rank,
) -> int:
    """Make this rank's share of the parts that are not there yet; ranks do not wait for one another.

    Args:
        tables: the rows of a part, in pieces, each of `schema`.
        made_of: whatever the rows depend on. Parts of anything else are not mixed with these.

    Returns:
        The number of rows that were made now, by this rank.

    Raises:
        ValueError: `out` holds something else.
    """
    _begin(out, made_of)
    left = [part for part in parts if not (out / part.file).exists()]
    if rank.is_first and len(left) < len(parts):
        log.info("%s: %d of %d files are there already", out, len(parts) - len(left), len(parts))
    # By their place among all, so that ranks need not see the folder alike.
    own = [part for part in parts[rank.index :: rank.count] if part in left]
    rows = 0
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not rank.is_first) as progress:
        task = progress.add_task("rows", total=sum(part.last - part.first for part in own))
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
    return rows


def _begin(out: Path, made_of: dict[str, str | int]) -> None:
    """Any rank may be the first."""
    path = out / MADE_OF
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file; wanted a folder, a new one or one that this command began")
    out.mkdir(parents=True, exist_ok=True)
    # Looked at in this order, because no part is written before MADE_OF.
    others = [other.name for other in out.iterdir() if not other.name.startswith(".")]
    if path.is_file():
        earlier = json.loads(path.read_bytes())
        changed = [name for name in made_of if earlier.get(name) != made_of[name]]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{out}: begun with {name} {earlier.get(name)}, now it is {made_of[name]}; "
                "give another folder"
            )
    elif others:
        raise ValueError(f"{out}: there is something else, such as {others[0]}; give a new folder")
    else:
        write_atomically(path, json.dumps(made_of, indent=1) + "\n")
    remove_torn(out)
