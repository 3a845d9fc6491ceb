"""What leaves a run loads without xpt, and computes the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.xpt.conftest import start
from xpt.embed import embed
from xpt.export import MOST_DIFFERENCE, export

pytestmark = pytest.mark.launch

WITHOUT_XPT = """
import sys
sys.modules["xpt"] = sys.modules["kernels"] = sys.modules["shards_tool"] = None  # importing them fails
import timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
torch.manual_seed(0)
image = torch.randint(0, 256, (2, *model.pretrained_cfg["input_size"])).float()
mean, std = model.pretrained_cfg["mean"][0], model.pretrained_cfg["std"][0]
with torch.no_grad():
    torch.save(model.forward_features((image / 255 - mean) / std), sys.argv[2])
path = sys.argv[1] + "/model.safetensors"
settings = dict(img_size=64, in_chans=1, embed_dim=24, depth=2, num_heads=2, num_classes=0)
timm.create_model("vit_base_patch16_224", checkpoint_path=path, **settings)
wide = timm.create_model("local-dir:" + sys.argv[1], pretrained=True, img_size=(32, 96)).eval()
with torch.no_grad():
    assert wide.forward_features(torch.zeros(1, 1, 32, 96)).shape == (1, 13, 24)
"""


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of two ranks whose weights no rank has whole."""
    folder = tmp_path_factory.mktemp("export") / "run"
    flags = ("--train.images", "16", "--train.eval-images", "0", "--train.warmup-images", "0")
    flags += ("--ds_config", str(ROOT / "ds_configs/zero3.json"))
    started = start(folder, shards, *flags, ranks=2)
    assert started.wait() == [0, 0], started.output()
    return folder


def test_plain_timm_and_onnx_give_the_trained_features(run: Path, tmp_path: Path):
    out = tmp_path / "model"
    errors = export(run, out, onnx=True, full=True)
    assert set(errors) == {"timm", "onnx"} and max(errors.values()) < MOST_DIFFERENCE
    command = [sys.executable, "-I", "-c", WITHOUT_XPT, str(out), str(tmp_path / "features.pt")]
    subprocess.run(command, check=True, cwd=tmp_path)
    found_BND = torch.load(tmp_path / "features.pt").numpy()
    torch.manual_seed(0)
    image_BCHW = torch.randint(0, 256, (2, 1, 64, 64))
    session = onnxruntime.InferenceSession(out / "encoder.onnx", providers=["CPUExecutionProvider"])
    for image, wanted_ND in zip(image_BCHW, found_BND, strict=True):
        (through_onnx,) = session.run(None, {"image": image[None].byte().numpy()})
        np.testing.assert_allclose(np.asarray(through_onnx)[0], wanted_ND, atol=1e-4)
    assert len(np.unique(found_BND)) > 100  # no constant


def test_the_weights_are_those_that_were_trained_and_the_decoder_only_comes_on_request(
    run: Path, tmp_path: Path
):
    export(run, tmp_path / "full", full=True)
    export(run, tmp_path / "encoder")
    encoder, full = (
        load_file(tmp_path / name) for name in ("encoder/model.safetensors", "full/full.safetensors")
    )
    assert not (tmp_path / "encoder/full.safetensors").exists()
    assert encoder and all(torch.equal(value, full[f"encoder.{name}"]) for name, value in encoder.items())
    assert any(name.startswith("decoder.") for name in full)
    assert torch.count_nonzero(encoder["norm.bias"]) > 0  # 0 before training


def test_the_card_says_what_went_in(run: Path, shards: Path, tmp_path: Path):
    export(run, tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    manifest = json.loads((shards / "manifest.json").read_bytes())
    description = json.loads((run / "checkpoints/images-000000000016/checkpoint.json").read_text())
    assert f"{manifest['splits']['train']['samples']}, {manifest['splits']['train']['patients']}" in card
    assert description["data_hash"] in card and "| images seen | 16 |" in card and "75% masked" in card
    assert "| grey values | side 96, jpeg 95" in card
    assert "{" not in card


def test_features_of_all_films_as_parquet(run: Path, shards: Path, tmp_path: Path):
    export(run, tmp_path / "model")
    rows = embed(shards, tmp_path / "model", tmp_path / "features.parquet", batch=7)
    table = pq.read_table(tmp_path / "features.parquet")
    samples = pq.read_table(shards / "samples.parquet")
    assert rows == len(table) == len(samples)
    assert sorted(table["key"].to_pylist()) == sorted(samples["key"].to_pylist())
    of = {key: (patient, split) for key, patient, split, *_ in zip(*table.columns, strict=True)}
    assert of == {
        key: (patient, split)
        for key, patient, split in zip(*(samples[n] for n in ("key", "patient", "split")), strict=True)
    }
    # One film alone has the features that it has in a batch.
    embed(shards, tmp_path / "model", tmp_path / "alone.parquet", split="val", batch=1)
    alone = {row["key"]: row for row in pq.read_table(tmp_path / "alone.parquet").to_pylist()}
    together = {row["key"]: row for row in table.to_pylist()}
    assert len(alone) > 3
    for key, row in alone.items():
        for name in ("cls", "mean"):
            np.testing.assert_allclose(row[name], together[key][name], atol=1e-4)
    assert np.ptp([row["mean"] for row in alone.values()], axis=0).max() > 1e-3


def test_what_is_wrong_is_said(shards: Path, run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no checkpoint in it"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        export(run, tmp_path / "out")
    with pytest.raises(ValueError, match="make the folder with: xpt-export"):
        embed(shards, tmp_path, tmp_path / "features.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
