"""Films in an S3 bucket are the same data set as films on a disk; a store that is gone costs no films.

The bucket is that of a server in this process (moto), reached over HTTP as a real one is.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from shards_tool import remote
from shards_tool.build import build
from shards_tool.schema import QUARANTINE, SAMPLES
from shards_tool.settings import BuildStoppedError
from shards_tool.sources import source_of, walk
from tests.shards_tool.archive import SMALL, picture, records_of, tree
from tests.shards_tool.test_sources import packed


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


def connected(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file system of the server, made anew: fsspec keeps those of other environments."""
    settings = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    return fsspec.filesystem("s3", use_listings_cache=False)


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system, with an empty bucket named films."""
    connected(server, monkeypatch).mkdir("films")
    yield connected(server, monkeypatch)
    connected(server, monkeypatch).rm("films", recursive=True)


def upload(store: Any, folder: Path, place: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"{place}/{path.relative_to(folder)}", path.read_bytes())
    return f"s3://{place}"


def test_a_bucket_gives_the_bytes_that_a_folder_gives(
    store: Any, films: Path, key_file: Path, tmp_path: Path
):
    table = tmp_path / "table.csv"
    table.write_text("file,label:Edema\na/0.dcm,1\nb.png,0\n")
    build([films], tmp_path / "plain", SMALL, meta=[table], key_file=key_file, workers=0)
    kinds = ("zip", "tar", "tar.gz", "zip in tar.gz")
    places = [upload(store, films, "films/in/a folder")]
    places += [upload(store, packed(films, kind), f"films/{kind}") for kind in kinds]
    for number, place in enumerate([*places, "s3://films/zip/x.zip"]):
        data = tmp_path / f"data{number}"
        summary = build([place], data, SMALL, meta=[table], key_file=key_file, workers=0)
        assert (summary.samples, summary.inputs) == (5, 5), place
        assert tree(data) == tree(tmp_path / "plain"), place


def test_workers_read_from_a_bucket(store: Any, films: Path, key_file: Path, tmp_path: Path):
    build([films], tmp_path / "plain", SMALL, key_file=key_file, workers=0)
    command = ["build", upload(store, films, "films/in"), "--out", str(tmp_path / "data")]
    options = [
        "--fractions",
        "0.6",
        "0.2",
        "0.2",
        "--side",
        "64",
        "--shard-size",
        "3",
        "--contour",
        "rect",
        "--key-file",
        str(key_file),
    ]
    # A process of its own: the workers' server keeps the environment in which it was started.
    code = "from shards_tool.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, *command, *options, "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    assert tree(tmp_path / "data") == tree(tmp_path / "plain")


def test_marks_of_folders_are_no_files(store: Any, films: Path, tmp_path: Path):
    upload(store, films, "films/in")
    for mark in ("films/in/", "films/in/a/"):
        store.pipe_file(mark, b"")
    found = walk([source_of("s3://films/in", tmp_path)], ())
    assert sorted(file.path for file in found) == ["a/0.dcm", "a/1.dcm", "a/2.dcm", "a/3.dcm", "b.png"]


def test_a_film_that_was_replaced_is_read_anew(store: Any, films: Path, key_file: Path, tmp_path: Path):
    place = upload(store, films, "films/in")
    build([place], tmp_path / "first", SMALL, key_file=key_file, workers=0)
    _, code = cv2.imencode(".png", picture(77))
    store.pipe_file("films/in/b.png", code.tobytes())
    build([place], tmp_path / "second", SMALL, key_file=key_file, workers=0)
    first, second = (set(records_of(tmp_path / name)) for name in ("first", "second"))
    assert len(first & second) == 4 and len(first | second) == 6


def test_what_is_not_there_is_named(store: Any, tmp_path: Path):
    for place in ("s3://films/none", "s3://no-such-bucket/films"):
        with pytest.raises(ValueError, match=f"no such source: {place}"):
            source_of(place, tmp_path)


def test_output_and_tables_stay_on_a_disk(store: Any, films: Path, key_file: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"--out s3:/films/out: a data set is written to a local folder"):
        build([films], Path("s3://films/out"), SMALL, key_file=key_file, workers=0)
    with pytest.raises(ValueError, match=r"--meta s3:/films/t\.csv: tables are read from local paths only"):
        build([films], tmp_path / "d", SMALL, meta=[Path("s3://films/t.csv")], key_file=key_file, workers=0)
    assert not Path("s3:").exists()


def test_without_credentials_a_build_says_so(
    store: Any, films: Path, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = upload(store, films, "films/in")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    type(store).clear_instance_cache()
    with pytest.raises(BuildStoppedError, match="s3://films/in: Unable to locate credentials"):
        build([place], tmp_path / "data", SMALL, key_file=key_file, workers=0)


@pytest.mark.parametrize("fails_from", [1, 3, 7])
def test_a_store_that_goes_away_stops_the_build_and_costs_no_film(
    store: Any,
    films: Path,
    key_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails_from: int,
):
    """At any point: while scanning, while making films, while opening an archive."""
    build([films], tmp_path / "plain", SMALL, key_file=key_file, workers=0)
    upload(store, films / "a", "films/in/a")
    upload(store, packed(films, "zip"), "films/in")
    reads = 0

    class GoneError(Exception):
        """As botocore's: no OSError."""

    real_open, real_exists = store.open, store.exists

    def open_or_fail(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads >= fails_from:
            raise GoneError("nobody answers")
        return real_open(*args)

    def exists_or_fail(path: str) -> bool:
        if reads >= fails_from:
            raise GoneError("nobody answers")
        return real_exists(path)

    monkeypatch.setattr(store, "open", open_or_fail)
    monkeypatch.setattr(store, "exists", exists_or_fail)
    data = tmp_path / "data"
    with pytest.raises(BuildStoppedError, match="nobody answers"):
        build(["s3://films/in"], data, SMALL, key_file=key_file, workers=0)
    fails_from = 10**9
    summary = build(["s3://films/in"], data, SMALL, key_file=key_file, workers=0)
    assert (summary.inputs, summary.samples, summary.quarantined) == (9, 5, 0)
    assert set(records_of(data)) == set(records_of(tmp_path / "plain"))
    assert {row["outcome"] for row in pq.read_table(data / QUARANTINE).to_pylist()} == {"duplicate"}
    assert pq.read_table(data / SAMPLES).num_rows == 5


def test_errors_of_a_package_become_os_errors():
    with pytest.raises(OSError, match="s3://x: odd"), remote.reaching("s3://x"):
        raise RuntimeError("odd")
    for error in (FileNotFoundError("f"), ValueError("v")):
        with pytest.raises(type(error)), remote.reaching("s3://x"):
            raise error
