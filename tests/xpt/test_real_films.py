"""Real chest films, from files to a model that has learned from them."""

from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest

from shards_tool.boxes import write_boxes
from shards_tool.build import build
from shards_tool.settings import BuildSettings
from tests.xpt.conftest import rows, start
from tests.xpt.test_finetune import TINY
from xpt.evaluate import Options, evaluate
from xpt.training import distributed


@pytest.mark.realdata
@pytest.mark.launch
def test_a_model_trained_on_real_films_is_better_on_patients_it_never_saw(cxr: Path, tmp_path: Path):
    shards = tmp_path / "shards"
    settings = BuildSettings(
        side=128, shard_size=32, fractions=(0.8, 0.2, 0.0), contour=f"masks:{cxr / 'masks'}"
    )
    (tmp_path / "key").write_text("0123456789abcdef" * 4)  # the same patients are held back every time
    build(
        [cxr / "images"],
        shards,
        settings,
        meta=[cxr / "labels.csv"],
        key_file=tmp_path / "key",
        workers=0,
    )
    samples = pq.read_table(shards / "samples.parquet", columns=["split", "patient"]).to_pylist()
    patients = {split: {s["patient"] for s in samples if s["split"] == split} for split in ("train", "val")}
    assert min(len(patients["train"]), len(patients["val"])) > 10
    assert not patients["train"] & patients["val"]

    run = start(
        tmp_path / "run",
        shards,
        *("--model.side", "128", "--model.width", "64", "--model.depth", "2", "--model.decoder-width", "64"),
        *(
            "--train.images",
            "800",
            "--train.batch",
            "8",
            "--train.micro-batch",
            "8",
            "--train.log-images",
            "80",
        ),
        *("--train.warmup-images", "80", "--train.eval-images", "400", "--train.eval-films", "16"),
        *("--train.checkpoint-images", "800", "--train.base-lr", "0.064"),
    )
    assert run.wait(timeout=300) == [0], run.output()
    losses = [row["val/loss"] for row in rows(run.folder) if "val/loss" in row]
    assert losses[2] < losses[1] < losses[0]
    assert losses[2] < 0.7 * losses[0]
    sheet = cv2.imread(str(run.folder / "pictures" / "reconstruction-000000000800.png"))
    assert sheet is not None
    assert sheet.shape[1] == 3 * 128


@pytest.mark.realdata
@pytest.mark.launch
def test_real_films_go_the_whole_way_from_labels_to_the_page(cxr: Path, tmp_path: Path):
    """51 films of NIH prove nothing about accuracy; that every step takes them is what is tested."""
    shards, key = tmp_path / "shards", tmp_path / "key"
    key.write_text("0123456789abcdef" * 4)
    settings = BuildSettings(side=128, shard_size=16, fractions=(0.6, 0.2, 0.2), sideways="exclude")
    build([cxr / "images" / "nih"], shards, settings, meta=[cxr / "labels.csv"], key_file=key, workers=0)
    # Films are told by their tables' names from the folder of the table on.
    written, _ = write_boxes(shards, cxr, cxr / "labels.csv", key.read_bytes(), tmp_path / "boxes.parquet")
    assert written >= 8

    run = start(
        tmp_path / "run",
        shards,
        *("--recognition.label-map", "nih14", "--recognition.missing", "zeros"),
        *("--recognition.findings", "Pneumonia", "Infiltration"),
        *("--recognition.other-labels", "ignore", "--train.images", "64", "--train.eval-images", "32"),
        job="finetune",
        base=TINY,
    )
    assert run.wait(timeout=200) == [0], run.output()
    rank = distributed.start()
    try:
        boxes = tmp_path / "boxes.parquet"
        scores = evaluate(Options(run=run.folder, boxes=boxes if in_test(shards, boxes) else None), rank)
    finally:
        distributed.stop()
    assert scores["films"] > 3
    assert (run.folder / "evaluation.html").stat().st_size > 10_000


def in_test(shards: Path, boxes: Path) -> bool:
    """Whether a film of the test split has a box of Pneumonia."""
    test = pq.read_table(shards / "samples.parquet", filters=[("split", "=", "test")])["key"].to_pylist()
    rows = pq.read_table(boxes).to_pylist()
    return any(row["key"] in test and row["finding"] == "Pneumonia" for row in rows)
