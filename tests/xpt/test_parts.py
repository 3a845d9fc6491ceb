"""Results of a whole data set in parts: shared among ranks, kept when work is stopped."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from xpt.parts import Part, Parts
from xpt.training.distributed import Rank

SCHEMA = pa.schema([("split", pa.string()), ("row", pa.int64())])
INPUTS = {"train": 23, "test": 5}


def numbers(part: Part) -> Iterator[pa.Table]:
    """The rows of a part in pieces of two."""
    for first in range(part.first, part.first + part.count, 2):
        rows = list(range(first, min(first + 2, part.first + part.count)))
        yield pa.table({"split": [part.split] * len(rows), "row": rows}, SCHEMA)


def write(
    out: Path, tables=numbers, *, index: int = 0, count: int = 1, model: str = "a", most: int = 5
) -> int:
    rank = Rank(index=index, count=count, device=torch.device("cpu"))
    return Parts(out, most=most, made_of={"model": model}, rank=rank).write(INPUTS, tables, SCHEMA)


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


def test_a_part_may_have_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert write(tmp_path / "out", lambda part: iter(())) == 0
    assert pq.read_table(tmp_path / "out").schema.equals(SCHEMA)
    assert "train-000000020.parquet: 3 of 3 were left out, being damaged" in caplog.text


def test_what_other_ranks_have_not_made_yet_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path / "out", index=1, count=2)
    assert "3 files are not there yet: where no other rank makes them, give the same command" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="xpt"):
        write(tmp_path / "out", index=0, count=2)
    assert "6 of 6 files are there" in caplog.text and "not there yet" not in caplog.text


def test_empty_parts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="--part: got 0, wanted at least 1"):
        write(tmp_path / "out", most=0)
    assert not (tmp_path / "out").exists()


def test_parts_of_two_models_are_not_mixed(tmp_path: Path):
    write(tmp_path / "out")
    with pytest.raises(ValueError, match="begun with model a, now it is b; give the same again, or another"):
        write(tmp_path / "out", model="b")
    with pytest.raises(ValueError, match="begun with --part 5, now it is 6"):
        write(tmp_path / "out", most=6)
    for damage in ("", "[]", "{}"):
        (tmp_path / "out/_made_of.json").write_text(damage)
        with pytest.raises(ValueError, match=r"_made_of\.json: damaged, or of another program"):
            write(tmp_path / "out")


def test_what_is_there_is_not_written_into(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("not to be lost")
    with pytest.raises(ValueError, match=r"there is something else, such as mine.txt; give a new folder"):
        write(tmp_path)
    with pytest.raises(ValueError, match=r"mine.txt: a file; wanted a folder"):
        write(tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
