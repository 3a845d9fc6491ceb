from pathlib import Path

import pytest

from shards_tool.reindex import rebuild_index
from shards_tool.schema import INDEX, SPLITS
from tests.shards_tool.archive import tree


@pytest.mark.parametrize("workers", [0, 1])
def test_lost_and_damaged_indexes_come_back_byte_for_byte(whole: Path, data: Path, workers: int):
    for split in SPLITS:
        (data / split / INDEX).unlink()
    first, *_ = sorted(data.glob("*/*.idx"))
    first.write_bytes(b"v1.2 0\n")
    rebuilt = rebuild_index(data, workers=workers)
    assert set(rebuilt) == {first.relative_to(data).as_posix(), *(f"{split}/{INDEX}" for split in SPLITS)}
    assert tree(data) == tree(whole)
    assert rebuild_index(data, workers=workers) == []


def test_a_damaged_shard_is_not_indexed(data: Path):
    (data / "train" / INDEX).unlink()
    tar = min(data.glob("train/*.tar"))
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"train/shard-.*SHA-256 differs from the manifest's; its source"):
        rebuild_index(data, workers=0)
    assert not (data / "train" / INDEX).exists()
    tar.unlink()
    with pytest.raises(ValueError, match="No such file"):
        rebuild_index(data, workers=0)
