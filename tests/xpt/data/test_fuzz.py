"""Bytes of a data set change under training: every film is the one that was written, or it is refused."""

import warnings
from pathlib import Path

import pytest

from shards_tool import schema
from tests.faults import faults
from tests.xpt.data.conftest import Film, random_film, write_shards
from xpt.data.index import ShardSet, open_shards
from xpt.data.reader import DamagedSampleError, ShardReader

FILMS = 12


@pytest.fixture
def films() -> list[Film]:
    return [random_film(n, suffix=(".jpg", ".png")[n % 2]) for n in range(FILMS)]


def read_all(shards: ShardSet, films: list[Film]) -> int:
    """How many films were refused; the others are those that were written."""
    reader, refused = ShardReader(shards), 0
    for row in range(len(shards)):
        try:
            sample = reader.read(row)
        except DamagedSampleError:
            refused += 1
            continue
        assert (sample.image.tobytes(), sample.contour.tobytes()) == (films[row].image, films[row].contour)
        assert (sample.key, tuple(sample.box_4.tolist())) == (f"{row:016x}", films[row].box)
    reader.close()
    return refused


def survive(tmp_path: Path, films: list[Film], cases: int) -> None:
    root = write_shards(tmp_path / "shards", films)
    shard_files = sorted((root / "train").glob("*.tar"))
    found = {"refused at the start": 0, "films refused": 0, "harmless": 0}
    tables = [root / schema.MANIFEST, root / "train" / schema.INDEX]
    for path, changed in faults([*tables, *tables, *shard_files], cases, seed=1):
        # numpy warns of a strange header before it refuses it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shards = open_shards(root, "train")
            except ValueError as error:
                assert path.name in str(error) or root.name in str(error)
                found["refused at the start"] += 1
                continue
        refused = read_all(shards, films)
        found["films refused" if refused else "harmless"] += 1
        if path.name == schema.INDEX:
            raise AssertionError(f"a changed index was opened: {changed[:200]!r}")
        # What a changed manifest may say differently is what training does not look at.
        assert (len(shards), shards.shard_sizes.tolist()) == (FILMS, [4, 4, 4])
    assert min(found.values()) > cases // 50, found


def test_a_few_hundred_faults_of_a_data_set(tmp_path: Path, films: list[Film]):
    survive(tmp_path, films, 300)


@pytest.mark.soak
def test_thousands_of_faults_of_a_data_set(tmp_path: Path, films: list[Film]):
    survive(tmp_path, films, 4000)
