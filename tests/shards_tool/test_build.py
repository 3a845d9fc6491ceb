import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from shards_tool import build as build_module
from shards_tool.build import build
from shards_tool.film import FilmRules
from shards_tool.ledger import LeftOut
from shards_tool.output import BUILD_FOLDER
from shards_tool.reading import read_film
from shards_tool.schema import INDEX, INDEX_DTYPE, MANIFEST, QUARANTINE, SAMPLES, SPLITS, validate_record
from shards_tool.settings import BuildSettings, BuildStoppedError
from shards_tool.shard import ShardTask, ShardWriter
from shards_tool.verify import verify
from tests.shards_tool.archive import (
    FILMS,
    INPUTS,
    SMALL,
    picture,
    tree,
    twelve_bit,
    write_dicom,
    write_key,
)


def records_of(data: Path) -> dict[str, dict]:
    return {row["key"]: row for row in pq.read_table(data / SAMPLES).to_pylist()}


def quarantine_of(data: Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in pq.read_table(data / QUARANTINE).to_pylist()}


def decoded(code: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels


def test_every_input_is_accounted_for(archive: Path, key_file: Path, tmp_path: Path):
    data = tmp_path / "data"
    meta = [archive / "table.csv"]
    summary = build([archive], data, SMALL, meta=meta, key_file=key_file, workers=0)
    assert (summary.inputs, summary.samples, summary.quarantined) == (INPUTS, FILMS, 2)
    assert (summary.duplicates, summary.excluded) == (1, 1)
    assert sum(summary.splits.values()) == FILMS and summary.contours == {"rect": FILMS}
    reasons = quarantine_of(data)
    assert set(reasons) == {"cut.jpg", "dicom/again.dcm", "empty.dcm", "table.csv"}
    original = reasons["dicom/again.dcm"].removeprefix("duplicate of ")
    assert original in records_of(data) and "truncated" in reasons["cut.jpg"]
    assert not (data / BUILD_FOLDER).exists()
    assert verify(data, workers=0).faults == []


def test_records_hold_what_header_and_table_say_and_nothing_else(
    archive: Path, key_file: Path, tmp_path: Path
):
    data = tmp_path / "data"
    build([archive], data, SMALL, meta=[archive / "table.csv"], key_file=key_file, workers=0)
    records = records_of(data).values()
    labelled = {len(record["labels"]): record for record in records if record["labels"]}
    a, b = labelled[3], labelled[1]
    assert dict(a["labels"]) == {"Edema": 1, "Effusion": 1, "Nodule": 1} and dict(b["labels"]) == {
        "Nodule": -1
    }
    assert dict(a["reports"]) == {"en": "Clear lungs.", "zh": "双肺清晰。"}
    assert a["patient"] == b["patient"] and a["split"] == b["split"] and a["study"] != b["study"]
    assert (a["age"], a["sex"], b["view"]) == (90, "F", "AP")  # ages above 90 are stored as 90
    dicoms = [record for record in records if record["bits_stored"] == 12]
    assert len(dicoms) == 3 and len({record["patient"] for record in dicoms}) == 2
    assert all((r["age"], r["sex"], r["view"], r["window"]) == (47, "F", "PA", "linear") for r in dicoms)
    written = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    for identity in (b"MRN-0000", b"Doe", b"PATIENT-77", b"1.2.826", b"a.png", bytes(tmp_path)):
        assert identity not in written


def test_index_points_at_the_files_in_the_tar(archive: Path, key_file: Path, tmp_path: Path):
    data = tmp_path / "data"
    build([archive], data, SMALL, key_file=key_file, workers=0)
    seen = 0
    for split in SPLITS:
        index = np.load(data / split / INDEX)
        assert index.dtype == np.dtype(INDEX_DTYPE)
        assert (np.diff(index["shard"].astype(int)) >= 0).all()
        for entry in index:
            content = (data / split / f"shard-{entry['shard']:06d}.tar").read_bytes()
            image, text = (
                content[entry[f"{name}_offset"] :][: entry[f"{name}_size"]] for name in ("image", "json")
            )
            record = validate_record(json.loads(text))
            assert record.key == entry["key"].decode() and record.box == tuple(entry["box"])
            assert decoded(image).shape == (64, 64)
            seen += 1
    assert seen == FILMS


def test_stored_images_look_like_their_source(key_file: Path, tmp_path: Path):
    source = tmp_path / "archive"
    write_dicom(source / "a.dcm", 4095 - twelve_bit(1), PhotometricInterpretation="MONOCHROME1")
    jpeg = BuildSettings(side=96, fractions=(1, 0, 0))
    for settings, tolerance in ((jpeg, 2.5), (dataclasses.replace(jpeg, format="png16"), 0.02)):
        data = tmp_path / settings.format
        build([source], data, settings, key_file=key_file, workers=0)
        (entry,) = np.load(data / "train" / INDEX)
        content = (data / "train" / "shard-000000.tar").read_bytes()
        code = content[entry["image_offset"] :][: entry["image_size"]]
        image = decoded(code).astype(float)
        assert image.shape == (96, 96) and tuple(entry["box"]) == (0, 8, 96, 88)
        expected = read_film((source / "a.dcm").read_bytes(), FilmRules()).pixels_HW / 257
        got = image[:, 8:88] / (257 if settings.format == "png16" else 1)
        assert np.abs(got - expected).mean() < tolerance
        assert np.corrcoef(got.ravel(), twelve_bit(1).ravel())[0, 1] > 0.99


def test_bytes_do_not_depend_on_workers_or_place(archive: Path, key_file: Path, tmp_path: Path):
    trees = []
    for workers in (0, 1, 2):
        data = tmp_path / f"data{workers}"
        build([archive], data, SMALL, meta=[archive / "table.csv"], key_file=key_file, workers=workers)
        trees.append(tree(data))
    assert trees[0] == trees[1] == trees[2]
    moved = tmp_path / "elsewhere"
    archive.rename(moved)
    build([moved], tmp_path / "data3", SMALL, meta=[moved / "table.csv"], key_file=key_file, workers=0)
    assert tree(tmp_path / "data3") == trees[0]


def test_patients_stay_in_their_split_when_others_join(archive: Path, key_file: Path, tmp_path: Path):
    build([archive], tmp_path / "before", SMALL, key_file=key_file, workers=0)
    for seed in range(20, 30):
        cv2.imwrite(str(archive / f"{seed}.png"), picture(seed))
    build([archive], tmp_path / "after", SMALL, key_file=key_file, workers=0)
    before, after = records_of(tmp_path / "before"), records_of(tmp_path / "after")
    assert len(after) == len(before) + 10
    assert all(after[key]["split"] == record["split"] for key, record in before.items())


@pytest.mark.parametrize("place", ["", "archive"])
def test_masks_become_contours_and_films_without_one_are_counted(
    archive: Path, key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
):
    """Masks may mirror the source folder's content, or the folder itself."""
    mask = np.zeros((96, 80), dtype=np.uint8)
    mask[20:60, 10:30] = mask[20:60, 50:70] = 255
    masks = archive / "masks"
    for name in ("a", "dicom/1"):
        (masks / place / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(masks / place / f"{name}.png"), mask)
    settings = dataclasses.replace(SMALL, contour=f"masks:{masks}")
    summary = build([archive], tmp_path / "data", settings, key_file=key_file, workers=0)
    assert summary.contours == {"mask": 2, "rect": FILMS - 2} and summary.inputs == INPUTS
    assert "5 of 7 films have no mask" in caplog.text
    assert json.loads((tmp_path / "data" / MANIFEST).read_bytes())["contours"] == summary.contours
    assert verify(tmp_path / "data", workers=0).faults == []


def test_an_unusable_mask_puts_its_film_into_quarantine(archive: Path, key_file: Path, tmp_path: Path):
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.ones((96, 80), dtype=np.uint8))
    settings = dataclasses.replace(SMALL, contour=f"masks:{tmp_path / 'masks'}")
    build([archive], tmp_path / "data", settings, key_file=key_file, workers=0)
    assert "its mask marks nothing" in quarantine_of(tmp_path / "data")["a.png"]


# Interruption


def test_a_finished_data_set_is_left_alone(archive: Path, key_file: Path, tmp_path: Path):
    data = tmp_path / "data"
    first = build([archive], data, SMALL, key_file=key_file, workers=0)
    times = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert build([archive], data, SMALL, key_file=key_file, workers=0) == first
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.tar")}.items() <= times.items()
    assert not (data / BUILD_FOLDER).exists()


class Killed(BaseException):
    """Stands for a kill between two shards."""


def interrupted_build(archive: Path, data: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = ShardWriter.__call__
    count = 0

    def write_or_die(self: ShardWriter, task: ShardTask, step):
        nonlocal count
        count += 1
        if count == 2:
            raise Killed
        return write(self, task, step)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "__call__", write_or_die)
        with pytest.raises(Killed):
            build([archive], data, SMALL, key_file=key_file, workers=0)
    assert (data / BUILD_FOLDER).exists() and not (data / MANIFEST).exists()


def test_an_interrupted_build_goes_on_and_ends_in_the_same_bytes(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    data = tmp_path / "data"
    interrupted_build(archive, data, key_file, monkeypatch)
    (kept,) = data.glob("*/*.tar")
    when = kept.stat().st_mtime_ns
    (kept.parent / "shard-000077.tar.1.tmp").write_bytes(b"half")
    build([archive], data, SMALL, key_file=key_file, workers=0)
    assert kept.stat().st_mtime_ns == when
    assert tree(data) == tree(tmp_path / "whole")


def test_input_that_changed_in_between_is_taken_as_it_is_now(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    interrupted_build(archive, data, key_file, monkeypatch)
    cv2.imwrite(str(archive / "a.png"), picture(50))
    cv2.imwrite(str(archive / "new.png"), picture(51))
    (archive / "b.png").unlink()
    build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


def test_another_request_into_the_same_folder_is_refused(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unfinished, finished = tmp_path / "unfinished", tmp_path / "finished"
    interrupted_build(archive, unfinished, key_file, monkeypatch)
    build([archive], finished, SMALL, key_file=key_file, workers=0)
    other = dataclasses.replace(SMALL, side=128, quality=80)
    other_key = tmp_path / "other key"
    other_key.write_text("f" * 64)
    for data in (unfinished, finished):
        with pytest.raises(ValueError, match=r"side: 64 there, 128 now; quality: 95 there, 80 now"):
            build([archive], data, other, key_file=key_file, workers=0)
        with pytest.raises(ValueError, match=r"key_fingerprint: "):
            build([archive], data, SMALL, key_file=other_key, workers=0)
    (archive / "a.png").unlink()
    with pytest.raises(ValueError, match="finished data set of other input"):
        build([archive], finished, SMALL, key_file=key_file, workers=0)
    assert not (finished / BUILD_FOLDER).exists() and verify(finished, workers=0).faults == []


def test_a_second_build_at_the_same_time_is_refused(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"

    def build_again(*_args: object) -> None:
        with pytest.raises(ValueError, match="another build is writing"):
            build([archive], data, SMALL, key_file=key_file, workers=0)
        raise Killed

    monkeypatch.setattr(build_module, "scan_inputs", build_again)
    with pytest.raises(Killed):
        build([archive], data, SMALL, key_file=key_file, workers=0)


def test_kill_9_and_the_same_command_give_the_same_bytes(key_file: Path, tmp_path: Path):
    archive = tmp_path / "archive"
    archive.mkdir()
    for seed in range(30):
        cv2.imwrite(str(archive / f"{seed}.png"), picture(seed, 300, 260))
    data = tmp_path / "data"
    arguments = [
        *("build", str(archive), "--out", str(data), "--side", "320", "--shard-size", "4", "--workers", "2"),
        *("--key-file", str(key_file)),
    ]
    code = "from shards_tool import make; make.PACK_FILMS = 4; from shards_tool.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    kills = 0
    for packs in (1, 3):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(data.glob(".build/*.bin"))) < packs:
                time.sleep(0.002)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
    assert kills == 2 and not (data / MANIFEST).exists()
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    settings = BuildSettings(side=320, shard_size=4)
    build([archive], tmp_path / "whole", settings, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


# Trouble


def test_a_film_that_crashes_its_decoder_goes_to_quarantine_after_two_tries(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from shards_tool import workers as workers_module

    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    victim = next(iter(records_of(tmp_path / "whole")))
    tries = []

    def run_inline(work, tasks, *, workers, on_step):
        """As `run_tasks` reports a worker that died at the victim."""
        for task in tasks:
            if victim in {item.film.key for item in task.films} - task.crashed:
                tries.append(task)
                yield task, workers_module.Died(item=victim, exit_code=-11)
            else:
                yield task, work(task, lambda _item: on_step())

    monkeypatch.setattr("shards_tool.make.run_tasks", run_inline)
    summary = build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    assert len(tries) == 2 and summary.samples == FILMS - 1
    assert "two workers died decoding it" in quarantine_of(tmp_path / "data").values()
    assert verify(tmp_path / "data", workers=0).faults == []


def test_a_full_disk_stops_cleanly_and_the_build_goes_on_later(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    sync = os.fsync
    calls = 0

    def full_at_the_third(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at_the_third)
        with pytest.raises(BuildStoppedError, match=r"No space left on device.*run the same command"):
            build([archive], data, SMALL, key_file=key_file, workers=0)
    assert not (data / MANIFEST).exists() and not list(data.rglob("*.tmp"))
    build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


def test_a_file_size_limit_stops_the_command_with_a_message(key_file: Path, tmp_path: Path):
    """A real failing write, in a worker process: the system refuses files over 100 kB."""
    archive = tmp_path / "archive"
    archive.mkdir()
    for seed in range(12):
        noise = np.random.default_rng(seed).integers(0, 256, (128, 128)).astype(np.uint8)
        cv2.imwrite(str(archive / f"{seed}.png"), noise)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from shards_tool.cli import main; main()"
    )
    arguments = ["build", str(archive), "--out", str(tmp_path / "data"), "--side", "128", "--workers", "1"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--key-file", str(key_file)], capture_output=True, text=True
    )
    assert run.returncode == 2 and "File too large" in run.stderr and "Traceback" not in run.stderr
    assert not list((tmp_path / "data").glob("*/*.t*"))


def test_a_folder_that_cannot_be_written_is_named(archive: Path, key_file: Path, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BuildStoppedError, match=r"Not a directory .*file/data"):
        build([archive], tmp_path / "file" / "data", SMALL, key_file=key_file, workers=0)


def test_no_write_permission_is_named(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: Path, *_args: object, **_options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BuildStoppedError, match=r"Permission denied .*data"):
        build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)


def test_a_source_that_goes_away_stops_the_build_and_a_single_film_does_not(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sources, data = [archive], tmp_path / "data"
    make = build_module.make_films

    def lose_and_make(what: Path, *args):
        what.rename(tmp_path / "gone")
        make(*args)

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_films", lambda *args: lose_and_make(archive, *args))
        with pytest.raises(BuildStoppedError, match="source is gone"):
            build(sources, data, SMALL, key_file=key_file, workers=0)
    (tmp_path / "gone").rename(archive)
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_films", lambda *args: lose_and_make(archive / "a.png", *args))
        build(sources, data, SMALL, key_file=key_file, workers=0)
    assert quarantine_of(data)["a.png"] == "cannot be read: No such file or directory"


def test_a_film_that_could_not_be_opened_is_tried_again(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    make = build_module.make_films

    def make_without_one(*args):
        (archive / "a.png").rename(tmp_path / "a.png")
        make(*args)
        (tmp_path / "a.png").rename(archive / "a.png")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "make_films", make_without_one)
        with pytest.raises(Killed):
            build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], data, SMALL, key_file=key_file, workers=0)
    build([archive], tmp_path / "whole", SMALL, key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


def test_a_film_that_changed_after_the_scan_is_not_taken_for_the_one_that_was_there(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make = build_module.make_films

    def change_and_make(*args):
        cv2.imwrite(str(archive / "a.png"), picture(77))
        os.utime(archive / "b.png")  # touched, but the same
        make(*args)

    monkeypatch.setattr(build_module, "make_films", change_and_make)
    build([archive], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    reasons = quarantine_of(tmp_path / "data")
    assert reasons["a.png"] == "the file changed during the build" and "b.png" not in reasons


def test_a_wrong_table_does_not_cost_the_films_that_are_made(
    archive: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tmp_path / "data"
    interrupted_build(archive, data, key_file, monkeypatch)
    (tmp_path / "t.csv").write_text("name\na.png\n")
    with pytest.raises(ValueError, match="no 'file'"):
        build([archive], data, SMALL, meta=[tmp_path / "t.csv"], key_file=key_file, workers=0)
    monkeypatch.setattr("shards_tool.pack.read_film", None)
    assert build([archive], data, SMALL, key_file=key_file, workers=0).samples == FILMS


def test_shards_of_a_single_film_are_fine(archive: Path, key_file: Path, tmp_path: Path):
    lonely = dataclasses.replace(SMALL, shard_size=1)
    build([archive], tmp_path / "data", lonely, key_file=key_file, workers=0)
    assert len(list((tmp_path / "data").glob("*/*.tar"))) == FILMS
    assert verify(tmp_path / "data", workers=0).faults == []


@pytest.mark.parametrize("name", ["table.csv", "cut.jpg", "empty.dcm"])
def test_an_archive_without_films_is_an_error_and_leaves_nothing(
    archive: Path, key_file: Path, tmp_path: Path, name: str
):
    only = tmp_path / "only"
    only.mkdir()
    (archive / name).rename(only / name)
    with pytest.raises(ValueError, match=r"no films found: 1 files|no film could be read"):
        build([only], tmp_path / "data", SMALL, key_file=key_file, workers=0)
    assert not (tmp_path / "data").exists()


def test_wrong_requests_say_what_is_wrong(archive: Path, key_file: Path, tmp_path: Path):
    def attempt(word: str, sources: list[Path], out: Path, **settings) -> None:
        with pytest.raises(ValueError, match=word):
            build(sources, out, BuildSettings(**settings), key_file=key_file, workers=0)

    attempt("no such source", [tmp_path / "none"], tmp_path / "data")
    attempt("no sources", [], tmp_path / "data")
    attempt("is a file", [archive], archive / "a.png")
    attempt("no data set; give an empty", [archive], archive)
    attempt("multiple of 8", [archive], tmp_path / "data", side=100)
    attempt("add up to 1", [archive], tmp_path / "data", fractions=(0.5, 0.1, 0.1))
    attempt("1 to 100", [archive], tmp_path / "data", quality=0)
    attempt("not known", [archive], tmp_path / "data", contour="oval")
    assert not (tmp_path / "data").exists()


def test_the_output_folder_and_its_key_may_lie_inside_the_source(archive: Path):
    data = archive / "data"
    first = build([archive], data, SMALL, workers=0)
    assert build([archive], data, SMALL, workers=0) == first and first.inputs == INPUTS


def test_rows_that_name_no_film_are_counted(
    archive: Path, key_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    build([archive], tmp_path / "data", SMALL, meta=[archive / "table.csv"], key_file=key_file, workers=0)
    assert "1 of 3 rows of the tables name no film" in caplog.text


def test_tables_are_matched_by_name_only_where_it_is_unique(archive: Path, key_file: Path, tmp_path: Path):
    elsewhere = tmp_path / "tables"
    elsewhere.mkdir()
    (archive / "sub").mkdir()
    cv2.imwrite(str(archive / "sub" / "a.png"), picture(60))
    table = elsewhere / "t.csv"
    table.write_text("file,label:One\na.png,1\nold/place/b.png,1\ndicom/0.dcm,1\n")
    build([archive], tmp_path / "data", SMALL, meta=[table], key_file=key_file, workers=0)
    labelled = [r for r in records_of(tmp_path / "data").values() if r["labels"]]
    # a.png is found by its path, b.png by its name; sub/a.png must not get a.png's row.
    assert len(labelled) == 3


# Real films


@pytest.mark.realdata
def test_all_real_films_end_in_a_shard_or_in_quarantine_with_a_reason(cxr: Path, tmp_path: Path):
    settings = BuildSettings(side=256, shard_size=48, contour=f"masks:{cxr / 'masks'}")
    sources, data = [cxr / "images", cxr / "dicom"], tmp_path / "data"
    key_file = write_key(tmp_path / "key")
    summary = build(sources, data, settings, meta=[cxr / "labels.csv"], key_file=key_file, workers=2)
    assert summary.inputs == 152 + 12 + 1
    # A table, 3 lateral films, 7 encodings of a hip; and one film twice, once as a wrongly tagged negative.
    assert (summary.samples, summary.excluded, summary.quarantined) == (153, 11, 0)
    assert summary.duplicates == 1 and summary.contours == {"mask": 60, "rect": 93}
    assert verify(data, workers=2).faults == []
    records = records_of(data).values()
    assert sum(bool(record["labels"]) for record in records) > 100
    assert {record["window"] for record in records} == {"full", "linear"}
    patients = {split: {r["patient"] for r in records if r["split"] == split} for split in SPLITS}
    assert not patients["train"] & patients["val"] and not patients["train"] & patients["test"]


def test_left_out_lines_keep_odd_names(tmp_path: Path):
    from shards_tool.tables import write_quarantine

    name = os.fsdecode(b"r\xf6ntgen.png")
    left_out = LeftOut(source=0, path=name, reason="x", transfer_syntax="")
    assert write_quarantine([left_out], tmp_path) == {"quarantine": 1}
    assert quarantine_of(tmp_path) == {"r\\xf6ntgen.png": "x"}
