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
