"""Which model found the contours is a part of what was asked for, wherever its file lies."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from shards_tool import make
from shards_tool.build import build, build_part
from shards_tool.contour.segmenter import SHIPPED
from shards_tool.ledger import Ledger
from shards_tool.schema import MANIFEST
from shards_tool.settings import BuildSettings, BuildStoppedError
from tests.shards_tool.archive import SMALL, tree
from tests.shards_tool.contour.models import save_model

ANOTHER = "belongs to a build with other settings .contour_model: "


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(make, "PACK_FILMS", 2)


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return save_model(tmp_path / "a.onnx")


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return save_model(tmp_path / "b.onnx", most=0.9)


def by(model: Path) -> BuildSettings:
    return dataclasses.replace(SMALL, contour=f"onnx:{model}")


class Killed(BaseException):
    """Stands for a kill."""


def test_an_interrupted_build_goes_on_with_its_own_model_only(
    films: Path, key_file: Path, tmp_path: Path, a: Path, b: Path, monkeypatch: pytest.MonkeyPatch
):
    add_made = Ledger.add_made

    def add_and_die(*args: object) -> None:
        add_made(*args)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Ledger, "add_made", add_and_die)
        build([films], tmp_path / "data", by(a), key_file=key_file, workers=0)
    with pytest.raises(ValueError, match=ANOTHER):
        build([films], tmp_path / "data", by(b), key_file=key_file, workers=0)
    build([films], tmp_path / "data", by(a), key_file=key_file, workers=0)
    build([films], tmp_path / "whole", by(a), key_file=key_file, workers=2)
    assert tree(tmp_path / "data") == tree(tmp_path / "whole")


def test_parts_of_another_model_are_not_merged(films: Path, key_file: Path, tmp_path: Path, a: Path, b: Path):
    data, copy = tmp_path / "data", Path(shutil.copy(a, tmp_path / "copy.onnx"))
    for number, model in ((1, a), (2, b)):
        build_part([films], data, by(model), part=(number, 2), key_file=key_file, workers=0)
    for model in (a, b):
        with pytest.raises(ValueError, match=ANOTHER):
            build([films], data, by(model), key_file=key_file, workers=0, merge=True)
    shutil.rmtree(data / ".build" / "part-002-of-002")
    build_part([films], data, by(copy), part=(2, 2), key_file=key_file, workers=0)
    build([films], data, by(a), key_file=key_file, workers=0, merge=True)
    build([films], tmp_path / "whole", by(a), key_file=key_file, workers=0)
    assert tree(data) == tree(tmp_path / "whole")


def test_a_finished_build_of_another_model_is_not_complete_already(
    films: Path, key_file: Path, tmp_path: Path, a: Path, b: Path
):
    build([films], tmp_path / "data", by(a), key_file=key_file, workers=0)
    with pytest.raises(ValueError, match=ANOTHER):
        build([films], tmp_path / "data", by(b), key_file=key_file, workers=0)
    build([films], tmp_path / "data", by(Path(a.rename(tmp_path / "c.onnx"))), key_file=key_file, workers=0)


def test_a_model_that_is_exchanged_during_a_build_stops_it(
    films: Path, key_file: Path, tmp_path: Path, a: Path, b: Path, monkeypatch: pytest.MonkeyPatch
):
    build([films], tmp_path / "whole", by(a), key_file=key_file, workers=0)
    add_made, kept = Ledger.add_made, a.read_bytes()

    def add_and_exchange(*args: object) -> None:
        add_made(*args)  # type: ignore[arg-type]
        shutil.copy(b, a)

    with monkeypatch.context() as patch, pytest.raises(BuildStoppedError, match="file changed during"):
        patch.setattr(Ledger, "add_made", add_and_exchange)
        build([films], tmp_path / "data", by(a), key_file=key_file, workers=0)
    a.write_bytes(kept)
    build([films], tmp_path / "data", by(a), key_file=key_file, workers=0)
    assert tree(tmp_path / "data") == tree(tmp_path / "whole")


@pytest.mark.parametrize(
    ("contour", "file"), [("network", SHIPPED), ("rect", None)], ids=["shipped", "no model"]
)
def test_the_manifest_names_the_model_by_its_hash(
    films: Path, key_file: Path, tmp_path: Path, contour: str, file: Path | None
):
    settings = dataclasses.replace(SMALL, contour=contour)
    build([films], tmp_path / "data", settings, key_file=key_file, workers=0)
    recorded = json.loads((tmp_path / "data" / MANIFEST).read_bytes())["settings"]
    assert recorded["contour"] == contour
    assert recorded["contour_model"] == (hashlib.sha256(file.read_bytes()).hexdigest() if file else "")
