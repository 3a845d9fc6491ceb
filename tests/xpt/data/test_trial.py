"""The doctor's trials of disk and decoder."""

from pathlib import Path

import torch

from xpt.data.index import open_shards
from xpt.data.trial import decode_a_picture, read_rate


def test_the_decoder_gives_back_the_pixels():
    assert decode_a_picture(torch.device("cpu")) == "a PNG decoded on cpu, pixel for pixel"


def test_every_film_is_read_once_and_the_bytes_are_those_of_the_index(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    rate = read_rate(shards, threads=3, seconds=60.0)
    assert (rate.films, rate.damaged) == (24, 0)
    assert rate.bytes == int(shards.rows["image_size"].sum() + shards.rows["contour_size"].sum())
    assert rate.films_per_second > 0 and rate.bytes_per_second > rate.films_per_second


def test_reading_ends_in_time_and_damage_is_counted(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    assert read_rate(shards, threads=2, seconds=-1.0).films == 0
    row = shards.rows[5]
    with shards.shard_path(1).open("r+b") as file:
        file.seek(int(row["image_offset"]) + 10)
        file.write(b"xx")
    assert read_rate(shards, threads=2, seconds=60.0).damaged == 1
