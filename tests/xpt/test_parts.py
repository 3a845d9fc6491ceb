"""Results of a whole data set in parts: shared among ranks, kept when work is stopped."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from xpt.parts import Part, parts_of, write_parts
from xpt.training.distributed import Rank

SCHEMA = pa.schema([("split", pa.string()), ("row", pa.int64())])
PARTS = parts_of({"train": 23, "test": 5}, most=5)


def numbers(part: Part) -> Iterator[pa.Table]:
    """The rows of a part in pieces of two."""
    for first in range(part.first, part.last, 2):
        rows = list(range(first, min(first + 2, part.last)))
        yield pa.table({"split": [part.split] * len(rows), "row": rows}, SCHEMA)


def write(out: Path, tables=numbers, *, index: int = 0, count: int = 1, model: str = "a") -> int:
    rank = Rank(index=index, count=count, device=torch.device("cpu"))
    return write_parts(out, PARTS, tables, schema=SCHEMA, made_of={"model": model}, rank=rank)


def everything(out: Path) -> list[tuple[str, int]]:
    return sorted((row["split"], row["row"]) for row in pq.read_table(out).to_pylist())


WHOLE = sorted([("train", row) for row in range(23)] + [("test", row) for row in range(5)])


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_ranks_make_every_row_once(tmp_path: Path, count: int):
    with ThreadPoolExecutor(count) as pool:  # all at once, into a folder that is not there
        shares = list(pool.map(lambda rank: write(tmp_path / "out", index=rank, count=count), range(count)))
    assert sum(shares) == 28 and everything(tmp_path / "out") == WHOLE
    assert pq.read_table(tmp_path / "out/train-000000020.parquet")["row"].to_pylist() == [20, 21, 22]


def test_stopped_work_goes_on_with_the_part_that_it_was_in(tmp_path: Path):
    def stopped(part: Part) -> Iterator[pa.Table]:
        for piece in numbers(part):
            if piece["row"][0].as_py() == 12:
                raise KeyboardInterrupt
            yield piece

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", stopped)
    assert sorted(path.name for path in tmp_path.glob("out/*")) == [
        "_made_of.json",
        "train-000000000.parquet",
        "train-000000005.parquet",
    ]
    assert write(tmp_path / "out") == 18
    assert everything(tmp_path / "out") == WHOLE


def test_a_part_may_have_no_rows(tmp_path: Path):
    assert write(tmp_path / "out", lambda part: iter(())) == 0
    assert pq.read_table(tmp_path / "out").schema.equals(SCHEMA)


def test_empty_parts_are_refused():
    with pytest.raises(ValueError, match="--part: got 0, wanted at least 1"):
        parts_of({"train": 3}, most=0)


def test_parts_of_two_models_are_not_mixed(tmp_path: Path):
    write(tmp_path / "out")
    with pytest.raises(ValueError, match="begun with model a, now it is b; give another folder"):
        write(tmp_path / "out", model="b")


def test_what_is_there_is_not_written_into(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("not to be lost")
    with pytest.raises(ValueError, match=r"there is something else, such as mine.txt; give a new folder"):
        write(tmp_path)
    with pytest.raises(ValueError, match=r"mine.txt: a file; wanted a folder"):
        write(tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
