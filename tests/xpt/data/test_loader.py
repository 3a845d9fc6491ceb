"""The same batches for every layout of ranks, and what happens to damaged films."""

import dataclasses
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import mask_and_gather
from tests.xpt.data.conftest import SIDE, Film, encoded, random_film, write_shards
from tests.xpt.data.loaders import BATCH, FRAMES, SETTINGS, evaluation, training
from xpt.data.index import open_shards
from xpt.data.loader import BatchLoader
from xpt.data.order import reserve


def by_position(loader: BatchLoader, batches: int) -> dict[int, tuple[str, bytes]]:
    """Key, everything that the model gets, and the patches it will see, of each position."""
    seen = {}
    with loader:
        for batch in islice(loader, batches):
            masked = mask_and_gather(
                batch.image_BCHW, batch.chest_BL, batch.is_valid_BL, batch.position_B, seed=42,
                keep=4, predict=4, patch=8, keep_inside=0.05, keep_outside=0.15, mean=0.5, std=0.25,
            )  # fmt: skip
            for n, position in enumerate(batch.position_B.tolist()):
                parts = (
                    *(batch.image_BCHW, batch.chest_BL, batch.lung_BL, batch.is_valid_BL, batch.weight_B),
                    *(masked.visible_BK, masked.predicted_BM),
                )
                seen[position] = (batch.keys[n], b"".join(part[n].numpy().tobytes() for part in parts))
    return seen


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Path:
    """24 films of which one has a flipped bit, one is cut short, and one has another size."""
    films = [random_film(n) for n in range(24)]
    films[5] = Film(image=films[5].image[:-30], contour=films[5].contour)
    films[17] = Film(image=encoded(".jpg", np.zeros((SIDE, 40))), contour=films[17].contour)
    folder = write_shards(tmp_path / "damaged", films)
    shards = open_shards(folder, "train")
    data = bytearray(shards.shard_path(2).read_bytes())
    data[int(shards.rows[9]["image_offset"]) + 100] ^= 4
    shards.shard_path(2).write_bytes(data)
    return folder


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 1), (2, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize("folder", ["shard_folder", "damaged_folder"])
def test_global_batches_are_the_same_for_every_layout_of_ranks(
    folder: str, world_size: int, accumulation: int, request: pytest.FixtureRequest
):
    path = request.getfixturevalue(folder)
    steps = 5
    alone = by_position(training(path), steps)
    together = {}
    for rank in range(world_size):
        loader = training(path, world_size=world_size, rank=rank, accumulation=accumulation)
        together |= by_position(loader, steps * accumulation)
    assert sorted(alone) == list(range(steps * BATCH))
    assert together == alone


def test_batches_are_the_same_for_any_number_of_threads(damaged_folder: Path):
    one = dataclasses.replace(SETTINGS, threads=1, readers=1, prefetch=1)
    many = dataclasses.replace(SETTINGS, threads=4, readers=8, prefetch=4)
    assert by_position(training(damaged_folder, one), 6) == by_position(training(damaged_folder, many), 6)


@pytest.mark.parametrize("start", [8, 21, 24, 1000])
def test_start_at_any_position_goes_on_as_if_never_stopped(shard_folder: Path, start: int):
    steps = 3
    resumed = by_position(training(shard_folder, start=start), steps)
    assert sorted(resumed) == list(range(start, start + steps * BATCH))
    first = start // BATCH * BATCH
    whole = by_position(training(shard_folder, start=first), steps + 1)
    assert resumed == {position: whole[position] for position in resumed}


def test_an_epoch_shows_each_film_once_and_the_next_in_other_crops(shard_folder: Path):
    seen = by_position(training(shard_folder), 6)
    epochs = [[seen[p] for p in range(24 * e, 24 * (e + 1))] for e in range(2)]
    assert [sorted(key for key, _ in epoch) for epoch in epochs] == [[f"{n:016x}" for n in range(24)]] * 2
    assert not {content for _, content in epochs[0]} & {content for _, content in epochs[1]}


def test_batch_has_the_promised_shapes_and_types(shard_folder: Path):
    with training(shard_folder, batch=6) as loader:
        batch = next(loader)
    assert (batch.image_BCHW.dtype, batch.image_BCHW.shape) == (torch.uint8, (6, 1, 32, 32))
    for tensor, dtype in (
        (batch.chest_BL, torch.float32),
        (batch.lung_BL, torch.float32),
        (batch.is_valid_BL, torch.bool),
    ):
        assert (tensor.dtype, tensor.shape) == (dtype, (6, 16))
    assert batch.position_B.tolist() == list(range(6)) and batch.position_B.dtype == torch.int64
    assert batch.weight_B.tolist() == [1.0] * 6
    assert batch.replaced == 0
    assert batch.image_BCHW.is_contiguous()


def test_damaged_films_are_replaced_by_rule_and_counted(damaged_folder: Path):
    with training(damaged_folder, batch=24) as loader, training(damaged_folder, batch=24) as again:
        batch = next(loader)
        assert next(again).keys == batch.keys
        assert batch.replaced == 3
        reasons = {fault.key: fault.reason for fault in loader.faults}
    assert set(reasons) == {f"{n:016x}" for n in (5, 9, 17)}
    assert not set(reasons) & set(batch.keys)
    assert "cut short" in reasons[f"{5:016x}"]
    assert "CRC-32" in reasons[f"{9:016x}"]
    assert "wrong size" in reasons[f"{17:016x}"]
    assert loader.replaced >= 3
    for fault in loader.faults:
        stand_in = next(
            r for a in range(9) if (r := reserve(42, fault.position % 24, a, 24)) not in {5, 9, 17}
        )
        if fault.position < 24:
            assert batch.keys[fault.position] == f"{stand_in:016x}"


def test_too_many_damaged_films_stop_with_advice(damaged_folder: Path):
    strict = dataclasses.replace(SETTINGS, max_bad_share=0.001)
    with (
        training(damaged_folder, strict) as loader,
        pytest.raises(RuntimeError, match=r"films read were damaged.*xpt-shards verify"),
    ):
        list(islice(loader, 6))


def test_film_that_dali_cannot_decode_stops_with_its_key(tmp_path: Path):
    films = [random_film(n) for n in range(4)]
    broken = bytearray(films[2].image)
    start_of_scan = broken.index(b"\xff\xda")
    broken[start_of_scan + 1] = 0xFE  # a comment instead of the scan: header and end are right, no picture
    films[2] = Film(image=bytes(broken), contour=films[2].contour)
    with (
        evaluation(write_shards(tmp_path / "s", films), batch=4) as loader,
        pytest.raises(RuntimeError, match=rf"DALI failed on the films .*{2:016x}.*xpt-shards verify"),
    ):
        next(loader)


@pytest.mark.parametrize("films", [None, 10, 1])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_counts_each_film_once_on_equal_numbers_of_batches(
    shard_folder: Path, world_size: int, films: int | None
):
    forwards, counted = [], []
    for rank in range(world_size):
        with evaluation(shard_folder, world_size=world_size, rank=rank, films=films) as loader:
            batches = list(loader)
        forwards.append(len(batches))
        for batch in batches:
            assert [f"{row:016x}" for row in batch.position_B.tolist()] == batch.keys
            counted += [
                key for key, weight in zip(batch.keys, batch.weight_B.tolist(), strict=True) if weight
            ]
    assert len(set(forwards)) == 1
    assert sorted(counted) == [f"{n:016x}" for n in range(films or 24)]


def test_evaluation_gives_stand_ins_no_weight(damaged_folder: Path):
    settings = dataclasses.replace(FRAMES, max_bad_share=1.0)
    with evaluation(damaged_folder, settings, batch=24) as loader:
        (batch,) = loader
    assert [n for n, weight in enumerate(batch.weight_B.tolist()) if weight == 0] == [5, 9, 17]


def test_evaluation_of_no_films_is_refused(shard_folder: Path):
    with pytest.raises(ValueError, match="evaluation films: got 0"):
        evaluation(shard_folder, films=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_batches_of_the_cpu(shard_folder: Path):
    with training(shard_folder) as on_cpu, training(shard_folder, device=torch.device("cuda", 0)) as on_gpu:
        for expected, batch in islice(zip(on_cpu, on_gpu, strict=True), 4):
            assert batch.image_BCHW.device.type == "cuda"
            assert batch.keys == expected.keys
            assert torch.equal(batch.is_valid_BL.cpu(), expected.is_valid_BL)
            torch.testing.assert_close(batch.chest_BL.cpu(), expected.chest_BL, atol=1 / 16, rtol=0)
            # Decoders round differently, by a grey level or two.
            difference = batch.image_BCHW.cpu().float() - expected.image_BCHW.float()
            assert difference.abs().mean() < 1


def test_batches_stay_as_they_were_when_later_ones_come(shard_folder: Path):
    with training(shard_folder) as loader:
        kept = next(loader)
        copy = kept.image_BCHW.clone()
        list(islice(loader, 8))
    assert torch.equal(kept.image_BCHW, copy)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_closing_ends_threads_and_files(shard_folder: Path, taken: int):
    def held() -> tuple[set[str], int]:
        threads = {t.name for t in threading.enumerate() if t.name.startswith("xpt-read")}
        tars = [f for f in open_files() if f.endswith(".tar")]
        return threads, len(tars)

    loader = training(shard_folder)
    list(islice(loader, taken))
    if taken:
        assert held() != (set(), 0)
    for _ in range(2):
        loader.close()
        assert held() == (set(), 0)


def open_files() -> Iterator[str]:
    for link in Path("/proc/self/fd").iterdir():
        try:
            yield str(link.readlink())
        except FileNotFoundError:  # the folder's own descriptor
            continue


def test_repeated_opening_and_closing_leaks_no_threads(shard_folder: Path):
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    with training(shard_folder) as loader:
        next(loader)
    before = threads()
    for _ in range(5):
        with training(shard_folder) as loader:
            next(loader)
    assert threads() <= before


def test_waiting_is_measured(shard_folder: Path):
    with training(shard_folder) as loader:
        assert loader.wait_seconds == 0
        next(loader)
        assert loader.wait_seconds > 0


def test_world_size_that_does_not_divide_the_batch_is_refused(shard_folder: Path):
    with pytest.raises(ValueError, match="got 8 images for 3 ranks"):
        training(shard_folder, world_size=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.8)),
        ("flip", 1.5),
        ("prefetch", 0),
        ("max_bad_run", 0),
    ],
)
def test_setting_out_of_range_is_named(field: str, value: object):
    with pytest.raises(ValueError, match=f"data.{field}: got"):
        dataclasses.replace(SETTINGS, **{field: value})
