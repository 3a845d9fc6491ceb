import errno
import gc
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shards_tool import schema
from tests.xpt.data.conftest import SIDE, Film, encoded, random_film, write_shards
from xpt.data import reader as reader_module
from xpt.data.index import ShardSet, open_shards
from xpt.data.order import reserve
from xpt.data.reader import DamagedSampleError, DataError, SampleSource, ShardReader


def damage(shards: ShardSet, row: int, part: str, at: int = 30) -> None:
    """Flip one bit of a stored file."""
    path = shards.shard_path(int(shards.rows[row]["shard"]))
    data = bytearray(path.read_bytes())
    data[int(shards.rows[row][f"{part}_offset"]) + at] ^= 1
    path.write_bytes(data)


def edit_index(folder: Path, row: int, **values: object) -> None:
    path = folder / "train" / schema.INDEX
    rows = np.load(path)
    for name, value in values.items():
        rows[name][row] = value
    np.save(path, rows)


def source(
    shards: ShardSet, *, max_bad_share: float = 1.0, max_bad_run: int = 8, patience: float = 0.0
) -> SampleSource:
    return SampleSource(
        shards, seed=11, max_bad_share=max_bad_share, max_bad_run=max_bad_run, patience=patience
    )


def fail_reads(monkeypatch: pytest.MonkeyPatch, times: int, number: int = errno.EIO) -> None:
    """The next `times` reads of shards end in the error `number`."""
    left, pread = iter(range(times)), os.pread

    def fails(descriptor: int, size: int, offset: int) -> bytes:
        if next(left, None) is not None:
            raise OSError(number, os.strerror(number))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", fails)


def test_reads_the_bytes_that_were_written(tmp_path: Path):
    films = [random_film(n) for n in range(9)]
    films[5] = Film(image=films[5].image, contour=films[5].contour, box=(3, 0, 60, 64))
    shards = open_shards(write_shards(tmp_path / "s", films), "train")
    reader = ShardReader(shards)
    for row, film in enumerate(films):
        sample = reader.read(row)
        assert sample.key == f"{row:016x}"
        assert (sample.image.tobytes(), sample.contour.tobytes()) == (film.image, film.contour)
        assert tuple(sample.box_4.tolist()) == film.box
    reader.close()


@pytest.mark.parametrize("part", ["image", "contour"])
def test_flipped_bit_is_found(shard_folder: Path, part: str):
    shards = open_shards(shard_folder, "train")
    damage(shards, 6, part)
    with pytest.raises(DamagedSampleError, match=f"{part}: bytes differ"):
        ShardReader(shards).read(6)


def test_end_of_a_truncated_shard_is_found(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    os.truncate(shards.shard_path(1), int(shards.rows[7]["image_offset"]) + 10)
    assert ShardReader(shards).read(6).row == 6
    with pytest.raises(DamagedSampleError, match="image: shard ends early, got 10 bytes"):
        ShardReader(shards).read(7)


def test_missing_shard_is_named(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    shards.shard_path(1).unlink()
    with pytest.raises(DamagedSampleError, match="image: FileNotFoundError"):
        ShardReader(shards).read(7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_offset": 2**63}, "image: index says up to byte 9223372036854"),
        ({"contour_offset": 2**40}, r"contour: index says up to byte 1099511\d+, the shard has \d{5}$"),
        ({"image_size": 2**32 - 1}, "image: index says 4294967295 bytes"),
        ({"image_size": 0}, "image: "),
        ({"contour_size": 0, "contour_crc32": 0}, "contour: neither JPEG nor PNG"),
        ({"box": (0, 0, 0, 64)}, "content box"),
        ({"box": (0, 0, 64, 65)}, "content box"),
        ({"box": (9, 0, 8, 64)}, "content box"),
    ],
)
def test_damaged_index_entry_is_found(shard_folder: Path, values: dict[str, object], message: str):
    edit_index(shard_folder, 6, **values)
    with pytest.raises(DamagedSampleError, match=message):
        ShardReader(open_shards(shard_folder, "train", check_files=False)).read(6)


@pytest.mark.parametrize(
    ("film", "message"),
    [
        (Film(image=random_film(0).image[:-40], contour=random_film(0).contour), "image: cut short"),
        (
            Film(image=encoded(".jpg", np.zeros((SIDE, 48))), contour=random_film(0).contour),
            "image: wrong size",
        ),
        (Film(image=random_film(0).image, contour=encoded(".png", np.zeros((9, 9)))), "contour: wrong size"),
        (Film(image=random_film(0).image, contour=b""), "contour: neither JPEG nor PNG, 0 bytes"),
    ],
)
def test_picture_that_was_written_wrong_is_found(tmp_path: Path, film: Film, message: str):
    shards = open_shards(write_shards(tmp_path / "s", [film]), "train")
    with pytest.raises(DamagedSampleError, match=message):
        ShardReader(shards).read(0)


def test_stand_in_follows_the_rule_past_other_damaged_films(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    stand_ins = [reserve(11, 100, attempt, 24) for attempt in range(3)]
    assert len({6, *stand_ins}) == 4
    for row in (6, *stand_ins[:2]):
        damage(shards, row, "image")
    sample = source(shards).fetch(100, 6)
    assert (sample.row, sample.is_stand_in) == (stand_ins[2], True)
    assert not source(shards).fetch(101, stand_ins[2]).is_stand_in


def test_damaged_film_is_logged_once_and_counted_each_time(
    shard_folder: Path, caplog: pytest.LogCaptureFixture
):
    shards = open_shards(shard_folder, "train")
    damage(shards, 6, "image")
    films = source(shards)
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            films.fetch(6 + 24 * epoch, 6)
    assert films.replaced == 3
    assert [(f.position, f.key, f.shard) for f in films.faults] == [(6, f"{6:016x}", "shard-000001.tar")]
    (message,) = caplog.messages
    assert f"{6:016x}" in message and "shard-000001.tar" in message and "CRC-32" in message


def test_a_share_of_damaged_films_past_the_limit_stops(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    damage(shards, 6, "image")
    films = source(shards, max_bad_share=0.002)
    for position in range(2):
        films.fetch(position, 6)
    with pytest.raises(
        RuntimeError, match=r"3 of \d films read were damaged.*xpt-shards verify.*max_bad_share"
    ):
        films.fetch(2, 6)


def test_a_run_of_damaged_films_stops(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    for row in range(24):
        damage(shards, row, "image")
    with pytest.raises(RuntimeError, match=r"position 3: 5 films in a row were damaged.*xpt-shards verify"):
        source(shards, max_bad_run=5).fetch(3, 3)


def test_threads_share_few_open_files(tmp_path: Path):
    films = [random_film(n % 7) for n in range(300)]
    shards = open_shards(write_shards(tmp_path / "s", films, shard_size=1), "train")

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()  # readers of other tests close their files
    before = open_files()
    reader = ShardReader(shards)
    rows = np.random.default_rng(0).integers(0, 300, 1500).tolist()
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(reader.read, rows))
    assert all(s.image.tobytes() == films[s.row].image for s in samples)
    assert 0 < open_files() - before <= 128
    reader.close()
    assert open_files() == before


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_read_that_fails_for_a_while_is_tried_again(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
):
    monkeypatch.setattr(reader_module, "_FIRST_PAUSE", 0.01)
    fail_reads(monkeypatch, 4, number)
    films = source(open_shards(shard_folder, "train"), patience=10.0)
    sample = films.fetch(0, 6)
    assert (sample.row, sample.is_stand_in) == (6, False)
    assert (films.retries, films.replaced) == (4, 0)
    (message,) = caplog.messages
    assert "shard-000001.tar" in message and os.strerror(number) in message


def test_a_film_that_stays_unreadable_among_others_is_replaced(
    shard_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    # Tries at 0, 0.1, 0.3 seconds; the next would come after 0.7.
    fail_reads(monkeypatch, 3)
    films = source(open_shards(shard_folder, "train"), patience=0.5)
    assert films.fetch(0, 6).is_stand_in
    assert films.retries == 3
    assert "OSError" in films.faults[0].reason


def test_a_missing_shard_is_replaced_without_waiting(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    shards.shard_path(1).unlink()
    films, started = source(shards, patience=60.0), time.monotonic()
    assert films.fetch(0, 6).is_stand_in
    assert time.monotonic() - started < 5


def test_a_data_set_that_is_away_is_waited_for(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    away = shard_folder.rename(shard_folder.with_name("away"))
    films = source(shards, patience=30.0)
    threading.Timer(0.5, lambda: away.rename(shard_folder)).start()
    assert not films.fetch(0, 6).is_stand_in
    assert films.replaced == 0


def test_a_data_set_that_stays_away_stops_and_damages_nothing(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    shard_folder.rename(shard_folder.with_name("away"))
    films = source(shards, patience=0.2)
    with pytest.raises(DataError, match=r"shard-000001.tar: No such file.*manifest.json cannot.*Mend"):
        films.fetch(0, 6)
    assert films.replaced == 0


def test_closing_does_not_wait_for_the_file_system(shard_folder: Path):
    shards = open_shards(shard_folder, "train")
    shard_folder.rename(shard_folder.with_name("away"))
    films = source(shards, patience=600.0)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(films.fetch, 0, 6)
        while not films.retries:
            time.sleep(0.01)
        films.give_up()
        assert isinstance(reading.exception(timeout=5), DataError)
