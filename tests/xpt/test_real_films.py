"""Real chest films, from files to a model that has learned from them."""

from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest

from shards_tool.build import build
from shards_tool.settings import BuildSettings
from tests.xpt.conftest import rows, start


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
