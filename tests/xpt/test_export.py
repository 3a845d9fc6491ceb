"""What leaves a run loads without xpt, and computes the same."""

import importlib.metadata
import json
import shutil
import subprocess
import sysconfig
import venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file

from shards_tool.build import build
from shards_tool.settings import BuildSettings
from tests.conftest import ROOT
from tests.shards_tool.archive import write_archive, write_key
from tests.xpt.conftest import start
from xpt.data.index import filled_splits, manifest_hash, open_shards
from xpt.data.samples import count_windows
from xpt.embed import Options, embed
from xpt.export import MOST_DIFFERENCE, FromPixels, export, trained_encoder
from xpt.model_card import what_is_known
from xpt.training.distributed import Rank
from xpt.training.engine import checkpoint_weights
from xpt.training.saved import newest

pytestmark = pytest.mark.launch

WITHOUT_XPT = """
import importlib.util, sys
present = [n for n in ("xpt", "kernels", "shards_tool", "deepspeed", "tyro") if importlib.util.find_spec(n)]
assert not present, present
import timm, torch
from safetensors.torch import load_file, save_file
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
image = load_file(sys.argv[2])["image"].float()
mean, std = model.pretrained_cfg["mean"][0], model.pretrained_cfg["std"][0]
path = sys.argv[1] + "/model.safetensors"
settings = dict(img_size=64, in_chans=1, embed_dim=24, depth=2, num_heads=2, num_classes=0)
other = timm.create_model("vit_base_patch16_224", checkpoint_path=path, **settings).eval()
with torch.no_grad():
    features = model.forward_features((image / 255 - mean) / std)
    assert torch.equal(features, other.forward_features((image / 255 - mean) / std))
save_file({"features": features}, sys.argv[3])
"""


def names_of(package: str) -> set[str]:
    """Files and folders in site-packages of an installed package and all that it requires."""
    todo, done, names = [package], set(), set()
    while todo:
        if (name := todo.pop()) in done:
            continue
        done.add(name)
        installed = importlib.metadata.distribution(name)
        names |= {file.parts[0] for file in installed.files or []}
        for required in map(Requirement, installed.requires or []):
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                todo.append(required.name)
    return names - {"..", "__pycache__"}


@pytest.fixture(scope="module")
def without_xpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with timm and what timm requires, and nothing else."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=True)
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    for name in names_of("timm"):
        (packages / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of two ranks whose weights no rank has whole."""
    folder = tmp_path_factory.mktemp("export") / "run"
    flags = ("--train.images", "16", "--train.eval-images", "0", "--train.warmup-images", "0")
    flags += ("--ds_config", str(ROOT / "ds_configs/zero3.json"))
    started = start(folder, shards, *flags, ranks=2)
    assert started.wait() == [0, 0], started.output()
    return folder


def test_timm_in_an_environment_without_xpt_and_onnx_give_the_trained_features(
    run: Path, without_xpt: Path, tmp_path: Path
):
    out = tmp_path / "model"
    errors = export(run, out, onnx=True, full=True)
    assert set(errors) == {"timm", "onnx"} and max(errors.values()) < MOST_DIFFERENCE
    trained = newest(run)
    assert trained is not None
    weights, settings = checkpoint_weights(trained.folder), trained.description["config"]["model"]
    image_BCHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64), dtype=np.uint8))
    with torch.no_grad():
        wanted_BND = FromPixels(trained_encoder(weights, settings, str(run))).eval()(image_BCHW)
    assert len(wanted_BND.unique()) > 100  # no constant

    save_file({"image": image_BCHW}, tmp_path / "image")
    command = [without_xpt, "-I", "-c", WITHOUT_XPT, out, tmp_path / "image", tmp_path / "features"]
    subprocess.run(command, check=True, cwd=tmp_path)
    found_BND = load_file(tmp_path / "features")["features"]
    torch.testing.assert_close(found_BND, wanted_BND, rtol=0, atol=1e-5)

    session = onnxruntime.InferenceSession(out / "encoder.onnx", providers=["CPUExecutionProvider"])
    for image_CHW, wanted_ND in zip(image_BCHW.numpy(), wanted_BND.numpy(), strict=True):
        (through_onnx,) = session.run(None, {"image": image_CHW[None]})
        np.testing.assert_allclose(np.asarray(through_onnx)[0], wanted_ND, atol=1e-4)


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
    assert "| pictures | side 96, jpeg, quality 95 |" in card
    films = manifest["counts"]["samples"]
    assert f"| grey range | whole range of the file: {films} films |" in card  # PNG files: no word of DICOM
    assert "VOI" not in card and "{" not in card


def test_the_card_counts_how_films_got_their_grey_range(tmp_path: Path):
    write_archive(tmp_path / "archive")
    key = write_key(tmp_path / "key")
    shards, settings = tmp_path / "shards", BuildSettings(side=96, contour="rect", views="all")
    build([tmp_path / "archive"], shards, settings, key_file=key, workers=0)
    assert count_windows(shards) == {"full": 4, "linear": 3}
    said = what_is_known(shards, manifest_hash(shards))
    assert said["grey range"] == "whole range of the file: 4 films, window of the file: 3 films"
    assert "another data set lies at" in what_is_known(shards, "0" * 64)["films, patients, grey range"]
    (shards / "samples.parquet").unlink()
    with pytest.raises(ValueError, match=r"samples.parquet: cannot be read .* xpt-shards verify"):
        count_windows(shards)


def test_features_of_all_films_as_parquet(run: Path, shards: Path, tmp_path: Path, rank: Rank):
    export(run, tmp_path / "model")
    options = Options(shards=shards, model=tmp_path / "model", out=tmp_path / "features", batch=7, part=20)
    rows = embed(options, rank)
    table = pq.read_table(options.out)
    files = [path.name for path in sorted(options.out.glob("*.parquet"))]
    counted = {split: len(open_shards(shards, split)) for split in filled_splits(shards)}
    parts = [(split, first) for split, films in counted.items() for first in range(0, films, 20)]
    assert files == sorted(f"{split}-{first:09d}.parquet" for split, first in parts)
    assert len(files) > len(counted) > 1
    samples = pq.read_table(shards / "samples.parquet")
    assert rows == len(table) == len(samples)
    assert sorted(table["key"].to_pylist()) == sorted(samples["key"].to_pylist())
    of = {key: (patient, split) for key, patient, split, *_ in zip(*table.columns, strict=True)}
    assert of == {
        key: (patient, split)
        for key, patient, split in zip(*(samples[n] for n in ("key", "patient", "split")), strict=True)
    }
    # One film alone has the features that it has in a batch.
    embed(replace(options, out=tmp_path / "alone", split="val", batch=1), rank)
    alone = {row["key"]: row for row in pq.read_table(tmp_path / "alone").to_pylist()}
    together = {row["key"]: row for row in table.to_pylist()}
    assert len(alone) > 3
    for key, row in alone.items():
        for name in ("cls", "mean"):
            np.testing.assert_allclose(row[name], together[key][name], atol=1e-4)
    assert np.ptp([row["mean"] for row in alone.values()], axis=0).max() > 1e-3
    with pytest.raises(ValueError, match="begun with --crop_to frame, now it is chest; give the same again"):
        embed(replace(options, crop_to="chest"), rank)


def test_damaged_films_are_left_out_and_counted(
    run: Path, shards: Path, tmp_path: Path, rank: Rank, caplog: pytest.LogCaptureFixture
):
    """Of a whole shard, and of a part that has no other film."""
    export(run, tmp_path / "model")
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    films = open_shards(copy, "train")
    for shard in (0, len(films.shard_names) - 1):
        first, size = int(films.row_starts[shard]), int(films.shard_sizes[shard])
        for record in films.rows[first : first + size]:
            with films.shard_path(shard).open("r+b") as file:
                file.seek(int(record["image_offset"]) + 60)
                file.write(b"rotten")
    last = len(films) - 1
    rotten = int(films.shard_sizes[0] + films.shard_sizes[-1])
    options = Options(shards=copy, model=tmp_path / "model", out=tmp_path / "out", split="train", part=last)
    assert embed(options, rank) == len(films) - rotten
    assert f"train-{last:09d}.parquet: 1 of 1 were left out, being damaged" in caplog.text
    assert len(pq.read_table(options.out)) == len(films) - rotten


def test_what_is_wrong_is_said(shards: Path, run: Path, tmp_path: Path, rank: Rank):
    with pytest.raises(ValueError, match="no checkpoint in it"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        export(run, tmp_path / "out")
    with pytest.raises(ValueError, match="make the folder with: xpt-export"):
        embed(Options(shards=shards, model=tmp_path, out=tmp_path / "features"), rank)
    with pytest.raises(ValueError, match="--batch: got 0, wanted at least 1"):
        embed(Options(shards=shards, model=tmp_path, out=tmp_path / "features", batch=0), rank)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
