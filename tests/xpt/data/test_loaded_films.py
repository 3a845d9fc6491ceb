"""Through DALI: pixels bit for bit, and image and contour under the same window."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from shards_tool import schema
from tests.xpt.data.conftest import SIDE, Film, encoded, grey, random_film, write_shards
from tests.xpt.data.loaders import CPU, FRAMES, evaluation, training
from xpt.config import DataConfig
from xpt.data.crop import chest_squares, draw_windows, full_frames
from xpt.data.index import open_shards
from xpt.data.pipeline import PicturePipeline
from xpt.data.reader import ShardReader


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
