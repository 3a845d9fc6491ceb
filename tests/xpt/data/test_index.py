import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards_tool import schema
from tests.xpt.data.conftest import random_film, write_shards
from xpt.data.index import open_shards


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / schema.MANIFEST).read_text())
    change(manifest)
    (folder / schema.MANIFEST).write_text(json.dumps(manifest))


def cut(path: Path, lost_bytes: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - lost_bytes])


def test_opens_what_was_written(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    assert len(shards) == 24
    assert shards.side == 64
    assert shards.shard_sizes.tolist() == [4] * 6
    assert shards.row_starts.tolist() == [0, 4, 8, 12, 16, 20]
    assert shards.manifest_hash == hashlib.sha256((shard_folder / schema.MANIFEST).read_bytes()).hexdigest()
    assert isinstance(shards.rows, np.memmap)
    row = shards.rows[13]
    data = shards.shard_path(3).read_bytes()[row["image_offset"] :][: row["image_size"]]
    assert data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")


def test_numbers_of_shards_may_have_gaps(tmp_path: Path):
    folder = write_shards(tmp_path / "s", [random_film(n) for n in range(8)], numbers=(2, 1_000_000))
    shards = open_shards(folder, "train")
    assert [shards.shard_path(n).name for n in (0, 1)] == ["shard-000002.tar", "shard-1000000.tar"]


def test_missing_folder_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder; make shards with: xpt-shards build SRC"):
        open_shards(tmp_path / "nowhere", "train")


def test_empty_folder_says_how_to_fill_it(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the folder is empty; make shards with: xpt-shards build SRC"):
        open_shards(tmp_path, "train")


def test_unfinished_build_says_to_finish_it(shard_folder: Path):
    (shard_folder / schema.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"no manifest.json.*give the same build command again"):
        open_shards(shard_folder, "train")


def test_manifest_that_is_not_json_is_refused(shard_folder: Path):
    cut(shard_folder / schema.MANIFEST, 3)
    with pytest.raises(ValueError, match=r"manifest.json: damaged, not JSON.*xpt-shards verify"):
        open_shards(shard_folder, "train")


def test_other_format_version_is_refused(shard_folder: Path):
    change_manifest(shard_folder, lambda m: m.update(format_version=2))
    with pytest.raises(ValueError, match="got format version 2, wanted 1; build the shards again"):
        open_shards(shard_folder, "train")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("settings"),
        lambda m: m["settings"].update(side="64"),
        lambda m: m.update(splits=[]),
        lambda m: m["splits"]["train"].pop("shards"),
        lambda m: m["splits"]["train"]["shards"][2].update(samples=-1),
        lambda m: m["splits"]["train"]["shards"][2].update(bytes=10**30),
        lambda m: m["splits"]["train"]["shards"][2].update(name="../../etc/passwd"),
        lambda m: m["splits"]["train"]["shards"].append(None),
    ],
)
def test_manifest_with_a_wrong_field_is_refused(shard_folder: Path, change: Callable[[dict[str, Any]], None]):
    change_manifest(shard_folder, change)
    with pytest.raises(ValueError, match=r"manifest.json: damaged.*xpt-shards verify"):
        open_shards(shard_folder, "train")


def test_split_without_films_names_those_with_some(shard_folder: Path):
    with pytest.raises(ValueError, match=r"no samples in split 'val', only in \['train'\]"):
        open_shards(shard_folder, "val")


def test_missing_index_is_named(shard_folder: Path):
    (shard_folder / "train" / schema.INDEX).unlink()
    with pytest.raises(ValueError, match=r"index.npy: no such file"):
        open_shards(shard_folder, "train")


@pytest.mark.parametrize("lost_bytes", [1, 100, 100_000])
def test_truncated_index_is_refused(shard_folder: Path, lost_bytes: int):
    path = shard_folder / "train" / schema.INDEX
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - lost_bytes)])
    with pytest.raises(ValueError, match=r"index.npy: damaged.*xpt-shards verify"):
        open_shards(shard_folder, "train")


def test_index_of_another_layout_is_refused(shard_folder: Path):
    np.save(shard_folder / "train" / schema.INDEX, np.zeros(24))
    with pytest.raises(ValueError, match="wanted those of format version 1"):
        open_shards(shard_folder, "train")


def test_index_with_another_count_is_refused(shard_folder: Path):
    path = shard_folder / "train" / schema.INDEX
    np.save(path, np.load(path)[:-1])
    with pytest.raises(ValueError, match=r"got 23 samples, but manifest.json counts 24"):
        open_shards(shard_folder, "train")


def test_index_cut_elsewhere_than_the_manifest_is_refused(shard_folder: Path):
    def move_one(manifest: dict[str, Any]) -> None:
        shards = manifest["splits"]["train"]["shards"]
        shards[1]["samples"], shards[2]["samples"] = 5, 3

    change_manifest(shard_folder, move_one)
    with pytest.raises(ValueError, match=r"rows of shard-000001.tar are not where manifest.json counts them"):
        open_shards(shard_folder, "train")


def test_flipped_bit_in_the_index_is_found(shard_folder: Path):
    path = shard_folder / "train" / schema.INDEX
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"index.npy: changed, got SHA-256"):
        open_shards(shard_folder, "train")


def test_missing_shard_is_named(shard_folder: Path):
    (shard_folder / "train" / "shard-000002.tar").unlink()
    with pytest.raises(ValueError, match=r"shard-000002.tar: no such file"):
        open_shards(shard_folder, "train")


def test_truncated_shard_is_named(shard_folder: Path):
    cut(shard_folder / "train" / "shard-000003.tar", 5000)
    with pytest.raises(ValueError, match=r"shard-000003.tar: truncated, got \d+ bytes, wanted \d+"):
        open_shards(shard_folder, "train")


def test_index_that_points_past_the_end_of_a_shard_is_refused(shard_folder: Path):
    path = shard_folder / "train" / "shard-000003.tar"
    cut(path, 12_000)
    change_manifest(
        shard_folder, lambda m: m["splits"]["train"]["shards"][3].update(bytes=path.stat().st_size)
    )
    with pytest.raises(ValueError, match=r"shard-000003.tar: the index places a sample up to byte"):
        open_shards(shard_folder, "train")


def test_files_are_compared_only_where_asked(shard_folder: Path):
    (shard_folder / "train" / "shard-000002.tar").unlink()
    assert len(open_shards(shard_folder, "train", check_files=False)) == 24
