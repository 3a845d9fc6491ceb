import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards_tool.build import build
from shards_tool.schema import SAMPLES, SPLITS
from shards_tool.split import split_again, stratified
from shards_tool.verify import verify
from tests.shards_tool.archive import SMALL, textured, tree, write_archive, write_dicom, write_key

FRACTIONS = (0.7, 0.15, 0.15)


def films_with_labels(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units of one to six films, a common, a rare and a very rare label."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(count), rng.integers(1, 7, count))
    present = rng.random((len(unit), 3)) < (0.4, 0.1, 0.02)
    names = np.array([f"{number:016x}" for number in unit], dtype="S16")
    return unit, np.concatenate([np.ones((len(unit), 1), bool), present], axis=1), names


def test_every_split_has_its_share_of_every_label():
    unit, labels, names = films_with_labels(0, 2000)
    split_of = stratified(unit, labels, names, FRACTIONS, "")
    for label in range(4):
        got = np.bincount(split_of[labels[:, label]], minlength=3) / labels[:, label].sum()
        np.testing.assert_allclose(got, FRACTIONS, atol=0.01)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_units_stay_whole_and_the_salt_alone_moves_them(seed: int, count: int):
    unit, labels, names = films_with_labels(seed, count)
    split_of = stratified(unit, labels, names, FRACTIONS, "a")
    assert all(len(set(split_of[unit == number])) == 1 for number in range(count))
    order = np.random.default_rng(seed).permutation(len(unit))
    shuffled = stratified(unit[order], labels[order], names[order], FRACTIONS, "a")
    np.testing.assert_array_equal(shuffled, split_of[order])
    assert set(stratified(unit, labels, names, (0, 1, 0), "")) == {1}
    if count > 20:
        assert (stratified(unit, labels, names, FRACTIONS, "b") != split_of).any()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("split")
    write_archive(root / "archive")
    pixels = textured(1).astype(np.uint16) * 16
    for seed in (20, 21):  # two patients with one film
        write_dicom(root / "archive" / f"{seed}.dcm", pixels + seed, seed=seed)
    settings = dataclasses.replace(SMALL, side=128, duplicates="keep")
    key_file = write_key(root / "key")
    meta = [root / "archive" / "table.csv"]
    build([root / "archive"], root / "data", settings, meta=meta, key_file=key_file, workers=0)
    return root / "data"


def rows(data: Path) -> dict[str, dict]:
    return {row["key"]: row for row in pq.read_table(data / SAMPLES).to_pylist()}


def test_the_new_data_set_holds_the_same_samples_in_sound_splits(whole: Path, tmp_path: Path):
    before = tree(whole)
    for salt in "abc":
        out = tmp_path / salt
        summary = split_again(whole, out, fractions=(0.4, 0.3, 0.3), salt=salt, workers=0)
        assert verify(out, workers=0).faults == [] and summary.samples == 9
        place = ("split", "shard")
        strip = {key: {k: v for k, v in row.items() if k not in place} for key, row in rows(out).items()}
        assert strip == {
            key: {k: v for k, v in row.items() if k not in place} for key, row in rows(whole).items()
        }
        assert len({row["split"] for row in rows(out).values() if row["duplicate_group"]}) == 1
        assert not (out / ".build").exists()
    again = tmp_path / "again"
    split_again(whole, again, fractions=(0.4, 0.3, 0.3), salt="a", workers=1)
    assert tree(again) == tree(tmp_path / "a") != tree(tmp_path / "b")
    assert tree(whole) == before and set(SPLITS) == {row["split"] for row in rows(again).values()}


def test_what_cannot_be_split_is_said(whole: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="add up to 1"):
        split_again(whole, tmp_path / "a", fractions=(0.5, 0.1, 0.1))
    with pytest.raises(ValueError, match="no data set"):
        split_again(tmp_path, tmp_path / "a")
    with pytest.raises(ValueError, match="belongs to a build with other settings"):
        split_again(whole, whole)
    damaged = Path(shutil.copytree(whole, tmp_path / "damaged"))
    (damaged / SAMPLES).write_bytes((whole / SAMPLES).read_bytes())
    next(iter(damaged.glob("*/index.npy"))).write_bytes(b"")
    with pytest.raises((ValueError, EOFError)):
        split_again(damaged, tmp_path / "b", workers=0)
