"""Through DALI: the same batches for every layout of ranks, image and contour under the same window."""

import dataclasses
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import mask_and_gather
from shards_tool import schema
from tests.data.conftest import SIDE, Film, encoded, grey, random_film, write_shards
from xpt.config import DataConfig
from xpt.data.crop import chest_squares, draw_windows, full_frames
from xpt.data.index import open_shards
from xpt.data.loader import BatchLoader, evaluation_loader, train_loader
from xpt.data.order import reserve
from xpt.data.pipeline import PicturePipeline
from xpt.data.reader import ShardReader

CPU = torch.device("cpu")
SETTINGS = DataConfig(
    crop_scale=(0.3, 1.0),
    flip=0.5,
    window_shards=2,
    threads=2,
    readers=2,
    max_bad_share=1.0,
)
FRAMES = DataConfig(crop_scale=(1.0, 1.0), flip=0.0, threads=2, readers=2, prefetch=3)
BATCH = 8


def training(
    folder: Path,
    settings: DataConfig = SETTINGS,
    *,
    side: int = 32,
    patch: int = 8,
    batch: int = BATCH,
    world_size: int = 1,
    rank: int = 0,
    accumulation: int = 1,
    start: int = 0,
    device: torch.device = CPU,
) -> BatchLoader:
    return train_loader(
        open_shards(folder, "train"),
        settings,
        side=side,
        patch=patch,
        seed=42,
        batch=batch,
        world_size=world_size,
        rank=rank,
        accumulation=accumulation,
        start=start,
        device=device,
    )


def evaluation(
    folder: Path,
    settings: DataConfig = FRAMES,
    *,
    batch: int = 3,
    world_size: int = 1,
    rank: int = 0,
    films: int | None = None,
) -> BatchLoader:
    return evaluation_loader(
        open_shards(folder, "train"),
        settings,
        side=SIDE,
        patch=8,
        seed=42,
        batch=batch,
        world_size=world_size,
        rank=rank,
        films=films,
        device=CPU,
    )


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


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_full_frame_is_bit_exact(tmp_path: Path, suffix: str):
    films = [random_film(n, suffix=suffix) for n in range(7)]
    folder = write_shards(tmp_path / "s", films)
    for loader in (training(folder, FRAMES, side=SIDE, batch=7), evaluation(folder, batch=7)):
        with loader:
            batch = next(loader)
        for n, key in enumerate(batch.keys):
            np.testing.assert_array_equal(batch.image_BCHW[n, 0].numpy(), grey(films[int(key, 16)].image))


def test_resampling_returns_a_full_frame_as_it_is(tmp_path: Path):
    films = [random_film(n, suffix=".png") for n in range(6)]
    settings = DataConfig(crop_scale=(1.0, 1.0), flip=1.0, threads=2)
    with training(write_shards(tmp_path / "s", films), settings, side=SIDE, batch=6) as loader:
        batch = next(loader)
    for n, key in enumerate(batch.keys):
        np.testing.assert_array_equal(
            batch.image_BCHW[n, 0].numpy(), grey(films[int(key, 16)].image)[:, ::-1]
        )


def test_16_bit_pictures_are_scaled_to_8_bits(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
    film = Film(image=encoded(".png", pixels), contour=random_film(0).contour)
    with evaluation(write_shards(tmp_path / "s", [film]), batch=1) as loader:
        image = next(loader).image_BCHW[0, 0].numpy()
    np.testing.assert_array_equal(image, np.round(pixels / 257).astype(np.uint8))


def test_contour_covers_what_the_stored_one_says(tmp_path: Path):
    films = [random_film(n) for n in range(4)]
    with evaluation(write_shards(tmp_path / "s", films), batch=4) as loader:
        batch = next(loader)
    for n in range(4):
        # A patch of 8 pixels is one pixel of the stored contour.
        stored = torch.from_numpy(grey(films[n].contour)).flatten()
        torch.testing.assert_close(batch.chest_BL[n], (stored >= schema.CONTOUR_CHEST).float())
        torch.testing.assert_close(batch.lung_BL[n], (stored == schema.CONTOUR_LUNG).float())


GREY_OF = {schema.CONTOUR_OUTSIDE: 20, schema.CONTOUR_CHEST: 120, schema.CONTOUR_LUNG: 220}


def self_portraits(count: int) -> list[Film]:
    """Films whose picture paints their own contour in three greys, so that it can be read off the pixels."""
    rng = np.random.default_rng(0)
    films = []
    for _ in range(count):
        contour = rng.choice(np.array(list(GREY_OF), dtype=np.uint8), (SIDE // 8,) * 2)
        painted = np.select([contour == value for value in GREY_OF], list(GREY_OF.values())).astype(np.uint8)
        films.append(
            Film(image=encoded(".png", painted.repeat(8, 0).repeat(8, 1)), contour=encoded(".png", contour))
        )
    return films


def test_contour_samples_show_what_the_cropped_and_mirrored_image_shows(tmp_path: Path):
    shards = open_shards(write_shards(tmp_path / "s", self_portraits(32)), "train")
    reader = ShardReader(shards)
    samples = [reader.read(row) for row in range(32)]
    boxes = np.stack([sample.box_4 for sample in samples])
    windows = draw_windows(
        np.arange(32), boxes, full_frames(32), stored_side=SIDE, seed=1, crop_scale=(0.2, 1.0), flip=0.5
    )
    # A contour sample every 4 pixels: its centre is the corner where pixels 1 and 2 of these meet.
    pipeline = PicturePipeline(batch=32, side=128, grid=8, threads=2, depth=1, keeps_frame=False, device=CPU)
    pipeline.feed(samples, windows)
    image_BCHW, contour_BCC = (tensor.clone() for tensor in pipeline.take())
    pipeline.close()
    reader.close()
    around_BCQC4 = image_BCHW.reshape(32, 32, 4, 32, 4)[:, :, 1:3, :, 1:3].int()
    is_clear_BCC = torch.zeros(32, 32, 32, dtype=torch.bool)
    for value, grey_value in GREY_OF.items():
        shows_BCC = ((around_BCQC4 - grey_value).abs() < 12).all(dim=4).all(dim=2)
        assert (contour_BCC[shows_BCC] == value).all()
        is_clear_BCC |= shows_BCC
    assert is_clear_BCC.float().mean() > 0.7


def test_covered_shares_are_those_of_the_cropped_and_mirrored_image(tmp_path: Path):
    folder = write_shards(tmp_path / "s", self_portraits(24))
    settings = DataConfig(crop_scale=(0.3, 0.9), flip=0.5, threads=2)
    with training(folder, settings, side=SIDE, patch=16, batch=24) as loader:
        batch = next(loader)
    for share_BL, threshold in ((batch.chest_BL, 70), (batch.lung_BL, 170)):
        is_above_BHW = (batch.image_BCHW[:, 0] > threshold).float()
        error, error_of_mirrored = (
            (share_BL - picture.reshape(24, 4, 16, 4, 16).mean(dim=(2, 4)).flatten(1)).abs().mean()
            for picture in (is_above_BHW, is_above_BHW.flip(2))
        )
        assert error < 0.05
        assert error_of_mirrored > 0.15


def test_chest_fills_the_square_that_is_cropped_to_it(tmp_path: Path):
    pixels, contour = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE // 8, SIDE // 8), np.uint8)
    pixels[16:40, 24:56], contour[2:5, 3:7] = 200, 128
    film = Film(image=encoded(".png", pixels), contour=encoded(".png", contour), box=(0, 0, SIDE, SIDE))
    folder = write_shards(tmp_path / "s", [film])
    settings = dataclasses.replace(FRAMES, crop_to="chest")
    with evaluation(folder, settings, batch=1) as loader:
        batch = next(loader)
    square = chest_squares([np.frombuffer(film.contour, np.uint8)])
    np.testing.assert_array_equal(batch.window_B4, np.concatenate([square.start_B2, square.end_B2], axis=1))
    # 32 x 24 pixels of a square of 35.2 are shown in 64.
    is_chest = batch.image_BCHW[0, 0] > 100
    for axis, wanted in ((0, 32 / 35.2 * SIDE), (1, 24 / 35.2 * SIDE)):
        places = is_chest.any(axis).nonzero()[:, 0]
        assert abs(len(places) - wanted) <= 2
        assert abs(places.min() + places.max() - (SIDE - 1)) <= 2
    chest_GG = batch.chest_BL.reshape(8, 8)
    assert chest_GG[4].mean() > 0.85 and not chest_GG[0].any()


def test_letterbox_bars_are_not_valid_and_the_rest_is(tmp_path: Path):
    pixels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    pixels[:, 20:44] = 200
    film = Film(image=encoded(".png", pixels), contour=random_film(0).contour, box=(0, 20, SIDE, 44))
    settings = DataConfig(crop_scale=(0.3, 1.0), flip=0.5, threads=2)
    with training(write_shards(tmp_path / "s", [film]), settings, side=SIDE, batch=32) as loader:
        batch = next(loader)
    brightest_BL = batch.image_BCHW.reshape(32, 8, 8, 8, 8).amax(dim=(2, 4)).flatten(1)
    assert (brightest_BL[batch.is_valid_BL] > 0).all()
    # Cubic resampling reaches two pixels beyond the edge, with little weight.
    assert (brightest_BL[~batch.is_valid_BL] < 120).all()
    assert 0.3 < batch.is_valid_BL.float().mean() < 0.9


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
