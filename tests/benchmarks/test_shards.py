import json
from pathlib import Path

import pytest

from benchmarks import shards
from benchmarks.shards_memory import memory_of_a_build


def test_the_benchmark_compares_pictures_and_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(shards, "HEIGHT", 500)
    monkeypatch.setattr(shards, "WIDTH", 400)
    monkeypatch.setattr(shards, "SIDE", 256)
    shards.main(["--films", "1", "--rounds", "1", "--json", str(tmp_path / "results.json")])
    printed = capfd.readouterr().out
    assert printed.index("oracle: both loops make the same pictures") < printed.index("plain loop")
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["films"]) == set(shards.KINDS) and set(results["verify"]) == {"checksums", "pictures"}


def test_two_cores_are_compared_by_what_half_of_the_films_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two ways whose start takes 5 and 50 seconds, and a film 3 and 1: only the films count."""
    clock = 0.0

    def passes(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    class Pool:
        def __init__(self, _count: int) -> None: ...
        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_error: object) -> None: ...
        def map(self, _work: object, parts: list[list[Path]], _roots: list[Path]) -> list[None]:
            passes(5 + 3 * max(map(len, parts)))
            return []

    source = tmp_path / "films"
    source.mkdir()
    for number in range(8):
        (source / f"{number}.dcm").write_bytes(b"")
    monkeypatch.setattr(shards, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(shards.time, "perf_counter", lambda: clock)

    def build(folder: Path, _root: Path, workers: int) -> None:
        passes(50 + len(list(folder.iterdir())) / workers)

    monkeypatch.setattr(shards, "_build", build)
    assert shards._on_two_cores(source, tmp_path, 3) == pytest.approx(3.0)


def test_another_picture_stops_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_difference", lambda *_args: 2.0)
    monkeypatch.setattr(shards, "_write_films", lambda *_args: tmp_path)
    with pytest.raises(AssertionError, match=r"differ by 2\.00 grey levels"):
        shards.main(["--films", "1"])


def test_memory_is_followed_through_all_stages():
    stages = memory_of_a_build(2_000)
    assert [stage.name for stage in stages][0::9] == ["start", "verify's parent"]
    peaks = [stage.peak_mb for stage in stages]
    assert peaks == sorted(peaks) and peaks[0] > 20
