"""Fine-tuning runs: that they learn, go on as if nothing had happened, and refuse what cannot be right."""

import dataclasses
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.xpt.conftest import Run, rows, start
from xpt import evaluate, finetune, predict
from xpt.config import EncoderConfig, as_json
from xpt.data.index import open_shards
from xpt.evaluate import Options
from xpt.evaluation.predictions import read_predictions
from xpt.export import export
from xpt.finetune_config import FinetuneConfig, RecognitionConfig, demo, from_json
from xpt.models.init import read_weights
from xpt.tasks.recognition import Recognition
from xpt.training.distributed import Rank

TINY = [
    *("--preset", "demo", "--model.side", "64", "--model.width", "48", "--model.depth", "2"),
    *("--recognition.label-map", "free", "--recognition.findings", "Spot", "Bar"),
    *("--train.images", "512", "--train.batch", "16", "--train.micro-batch", "8"),
    *("--train.base-lr", "0.05", "--train.warmup-images", "64", "--data.crop-scale", "0.9", "1.0"),
    *("--train.log-images", "64", "--train.eval-images", "128", "--train.checkpoint-images", "128"),
    *("--recognition.ema", "0.9", "--recognition.mixup", "0.2", "--recognition.drop-path", "0.1"),
]
"""32 steps with everything that draws random numbers or keeps a state of its own."""


def tune(folder: Path, shards: Path, *flags: str, ranks: int = 1) -> Run:
    return start(folder, shards, *flags, ranks=ranks, job="finetune", base=TINY)


def trace(folder: Path) -> list[dict[str, float]]:
    names = ("images", "loss", "lr", "grad_norm", "val/loss", "val/auroc")
    return [{name: row[name] for name in names if name in row} for row in rows(folder)]


@pytest.fixture(scope="module")
def whole(labelled_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tune(tmp_path_factory.mktemp("tuned") / "whole", labelled_shards)
    assert run.wait() == [0], run.output()
    assert "memory per rank, estimated" in run.output()
    return run.folder


@pytest.mark.launch
def test_a_killed_run_goes_on_bit_identically(labelled_shards: Path, tmp_path: Path, whole: Path):
    broken = tune(tmp_path / "broken", labelled_shards)
    broken.wait_for_images(192)
    broken.send(signal.SIGKILL)
    assert broken.wait() == [-signal.SIGKILL]
    assert not (broken.folder / "checkpoints" / "images-000000000512").exists()
    again = tune(tmp_path / "broken", labelled_shards)
    assert again.wait() == [0], again.output()
    assert trace(again.folder) == trace(whole)
    ours, theirs = (torch.load(run / "best.pt", weights_only=True) for run in (again.folder, whole))
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
    assert ours["images"] == theirs["images"]


@pytest.mark.launch
def test_zero_3_on_two_ranks_changes_only_rounding(labelled_shards: Path, tmp_path: Path):
    plain = ("--recognition.ema", "0", "--recognition.mixup", "0", "--recognition.drop-path", "0",
             "--train.images", "128", "--train.micro-batch", "4")  # fmt: skip
    one = tune(tmp_path / "one", labelled_shards, *plain)
    assert one.wait() == [0], one.output()
    two = tune(tmp_path / "two", labelled_shards, *plain, "--ds_config", "ds_configs/zero3.json", ranks=2)
    assert two.wait() == [0, 0], two.output()
    for ours, theirs in zip(trace(two.folder), trace(one.folder), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    ours, theirs = (torch.load(run.folder / "best.pt", weights_only=True)["model"] for run in (two, one))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.launch
def test_it_learns_and_the_evaluation_says_so(whole: Path, rank: Rank, tmp_path: Path):
    best = torch.load(whole / "best.pt", weights_only=True)
    validations = [row["val/auroc"] for row in rows(whole) if "val/auroc" in row]
    assert best["val/auroc"] == max(validations)
    config = from_json(best["config"])
    assert as_json(config) == json.loads((whole / "config.json").read_text())["config"]

    test_set = open_shards(Path(config.data.path), "test")
    spots = [
        {"key": key.decode(), "finding": "Spot", "top": 0.0, "left": 16.0, "bottom": 96.0, "right": 32.0}
        for key in test_set.rows["key"]
    ]
    pq.write_table(pa.Table.from_pylist(spots), tmp_path / "boxes.parquet")
    scores = evaluate.evaluate(
        Options(run=whole, against=None, boxes=tmp_path / "boxes.parquet", examples=1), rank
    )
    assert scores["split"] == "test"
    assert scores["mean"]["auroc"]["value"] > 0.9
    assert scores["mean"]["auroc"]["low"] <= scores["mean"]["auroc"]["value"]
    assert set(scores["localisation"]) == {"Spot"}
    saved = json.loads((whole / "evaluation.json").read_text())
    assert saved["findings"]["Spot"]["auroc"]["value"] == scores["findings"]["Spot"]["auroc"]["value"]
    found = read_predictions(whole / "predictions-test.parquet")
    assert found.findings == ("Spot", "Bar")
    assert len(found.keys) == len(test_set)
    assert np.isnan(found.target_NC).sum() == sum(
        1 for labels in labels_of(Path(config.data.path), "test") if labels["Bar"] == -1
    )
    options = predict.Options(
        run=whole, shards=Path(config.data.path), out=tmp_path / "all", batch=7, part=10
    )
    rows_of = {row["key"]: row for row in predicted(options, rank)}
    assert len(rows_of) == 72 and {row["split"] for row in rows_of.values()} == {"train", "val", "test"}
    for n, key in enumerate(found.keys):
        assert rows_of[key]["patient"] == found.patients[n]
        for c, name in enumerate(found.findings):
            assert rows_of[key][f"logit:{name}"] == pytest.approx(found.logit_NC[n, c], abs=1e-4)
            wanted = found.probabilities()[n, c]
            assert rows_of[key][f"probability:{name}"] == pytest.approx(wanted, abs=1e-4)

    page = (whole / "evaluation.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http" not in page.replace("<!doctype html>", "")

    against = evaluate.evaluate(Options(run=whole, against=whole, examples=0), rank)["against"]
    assert against["mean"]["value"] == 0
    assert against["mean"]["p_value"] == 1

    # Predictions of a test split that other shards had do not count for shards without one.
    without = Path(shutil.copytree(Path(config.data.path), tmp_path / "without"))
    manifest = json.loads((without / "manifest.json").read_bytes())
    manifest["splits"]["test"] = {"samples": 0, "patients": 0, "shards": []}
    (without / "manifest.json").write_text(json.dumps(manifest))
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    scores = evaluate.evaluate(Options(run=copy, data=str(without), examples=0), rank)
    assert scores["split"] == "val"
    with pytest.raises(ValueError, match="--protocol: of runs that write reports"):
        evaluate.evaluate(Options(run=whole, protocol="r2gen"), rank)


def test_a_folder_without_weights_predicts_nothing(labelled_shards: Path, tmp_path: Path, rank: Rank):
    options = predict.Options(run=tmp_path, shards=labelled_shards, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"best.pt: no such file; wanted a run folder of xpt-finetune"):
        predict.predict(options, rank)
    assert not options.out.exists()


def predicted(options: predict.Options, rank: Rank) -> list[dict[str, Any]]:
    """After two ranks and a second start."""
    shares = [predict.predict(options, replace(rank, index=index, count=2)) for index in (0, 1)]
    table = pq.read_table(options.out)
    assert sum(shares) == len(table) and min(shares) > 0
    assert predict.predict(options, rank) == 0
    return table.to_pylist()


@pytest.mark.launch
def test_the_best_weights_are_exported(whole: Path, tmp_path: Path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    best = torch.load(run / "best.pt", weights_only=True)
    best["images"] = 384
    best["model"]["encoder.norm.weight"] *= 1.5  # so that no checkpoint has them
    torch.save(best, run / "best.pt")
    assert max(export(run, tmp_path / "model", full=True).values()) < 1e-4
    found, whole_model = (load_file(tmp_path / f"model/{name}.safetensors") for name in ("model", "full"))
    assert torch.equal(found["norm.weight"], best["model"]["encoder.norm.weight"])
    assert set(whole_model) == set(best["model"]) and "head.weight" in whole_model
    assert "| images seen | 384 |" in (tmp_path / "model/README.md").read_text()


def labels_of(shards: Path, split: str) -> list[dict[str, float]]:
    table = pq.read_table(shards / "samples.parquet", filters=[("split", "=", split)])
    return [dict(pairs) for pairs in table["labels"].to_pylist()]


@pytest.mark.parametrize("protocol", ["knn", "logistic"])
def test_frozen_probes_write_what_evaluation_reads(
    labelled_shards: Path, tmp_path: Path, rank: Rank, protocol
):
    config = tiny(labelled_shards, tmp_path / "run", protocol=protocol)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    assert finetune.finetune(config, {}, rank) == 0
    # Nothing is left to go on from, so a signal must end it at once.
    assert [signal.getsignal(number) for number in numbers] == before
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"] == as_json(config)
    scores = evaluate.evaluate(Options(run=tmp_path / "run"), rank)
    assert scores["films"] == len(open_shards(labelled_shards, "test"))
    with pytest.raises(ValueError, match="has no heat maps"):
        evaluate.evaluate(Options(run=tmp_path / "run", boxes=tmp_path / "boxes.parquet"), rank)
    with pytest.raises(ValueError, match="a probe without training predicts as it is fitted"):
        evaluate.evaluate(Options(run=tmp_path / "run", data=str(labelled_shards)), rank)


@pytest.mark.launch
def test_a_frozen_probe_is_refused_in_the_folder_of_a_trained_run(
    labelled_shards: Path, whole: Path, rank: Rank
):
    before = (whole / "config.json").read_bytes()
    with pytest.raises(ValueError, match="Give the protocol knn a folder of its own"):
        finetune.finetune(tiny(labelled_shards, whole, protocol="knn"), {}, rank)
    assert (whole / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("eval_images", 0, "at least 1 in fine-tuning, whose best weights validation chooses"),
        ("max_skipped", 3, "its default, 8, in fine-tuning"),
        ("probe_films", 0, "its default, 1024, in fine-tuning"),
    ],
)
def test_settings_of_pretraining_alone_are_refused(flag: str, value: int, wanted: str):
    with pytest.raises(ValueError, match=f"config field train.{flag}: got {value}, wanted {wanted}"):
        dataclasses.replace(demo(), train=dataclasses.replace(demo().train, **{flag: value}))


def tiny(shards: Path, run: Path, **recognition) -> FinetuneConfig:
    config = demo()
    return dataclasses.replace(
        config,
        run_dir=str(run),
        data=dataclasses.replace(config.data, path=str(shards)),
        model=EncoderConfig(side=64, width=32, depth=1, heads=2),
        recognition=RecognitionConfig(
            **{"label_map": "free", "findings": ("Spot", "Bar"), "drop_path": 0.0} | recognition
        ),
    )


def task(shards: Path, **recognition) -> Recognition:
    config = tiny(shards, shards, **recognition)
    return Recognition(config, open_shards(shards, "train"), open_shards(shards, "val"))


def test_a_fraction_uses_fewer_patients_and_all_their_films(labelled_shards: Path):
    half, all_of_it = task(labelled_shards, fraction=0.5), task(labelled_shards)
    assert half.patients == round(all_of_it.patients / 2)
    assert len(half.train.shards) < len(all_of_it.train.shards) == len(open_shards(labelled_shards, "train"))
    keys = set(half.train.shards.rows["key"].tolist())
    assert keys < set(all_of_it.train.shards.rows["key"].tolist())


@pytest.mark.parametrize(
    ("recognition", "message"),
    [
        ({"findings": ("Spott", "Bar")}, r"finding Spott: no film .* Did you mean Spot\?"),
        ({"findings": ("Spot",)}, "label Bar: 1 labels of split val are outside the label map"),
        ({"fraction": 0.01}, "no (positive|negative) film in split train"),
        ({"kind": "multi_class"}, "has the classes Spot, Bar; wanted one"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labelled_shards: Path, recognition: dict, message: str):
    with pytest.raises(ValueError, match=message):
        task(labelled_shards, **recognition)


def test_a_patient_in_two_splits_is_refused(labelled_shards: Path, monkeypatch: pytest.MonkeyPatch):
    from xpt.tasks import recognition

    real = recognition.read_samples

    def leaking(shards):
        samples = real(shards)
        return dataclasses.replace(samples, patients=["the same", *samples.patients[1:]])

    monkeypatch.setattr(recognition, "read_samples", leaking)
    with pytest.raises(ValueError, match="patient the same: in the splits train and val"):
        task(labelled_shards)


def test_without_validation_films_it_is_refused(labelled_shards: Path, tmp_path: Path):
    manifest = json.loads((labelled_shards / "manifest.json").read_text())
    manifest["splits"]["val"] = {"samples": 0, "shards": []}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="got no samples in split 'val'"):
        open_shards(tmp_path / "shards", "val")


def test_a_validation_split_where_nobody_is_ill_is_refused(
    labelled_shards: Path, monkeypatch: pytest.MonkeyPatch
):
    from xpt.tasks import recognition

    real = recognition.read_samples

    def healthy(shards):
        samples = real(shards)
        if shards.split == "val":
            samples = dataclasses.replace(samples, labels=[{"Spot": 0.0, "Bar": 0.0} for _ in samples.labels])
        return samples

    monkeypatch.setattr(recognition, "read_samples", healthy)
    with pytest.raises(ValueError, match="split val: no finding has both a positive and a negative film"):
        task(labelled_shards)


def test_validation_must_define_a_finding_among_the_films_that_it_looks_at(labelled_shards: Path):
    config = tiny(labelled_shards, labelled_shards)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_films=1))
    with pytest.raises(ValueError, match="among its first 1, so no model can be chosen"):
        Recognition(config, open_shards(labelled_shards, "train"), open_shards(labelled_shards, "val"))


def test_a_damaged_file_of_weights_is_refused(tmp_path: Path):
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"--init .*weights.safetensors: damaged"):
        read_weights(tmp_path / "weights.safetensors")


def test_another_architecture_is_refused_with_the_flags_to_set(
    labelled_shards: Path, tmp_path: Path, whole: Path, rank: Rank
):
    with pytest.raises(ValueError, match=r"missing: blocks\.2\.attn.*of another shape"):
        config = dataclasses.replace(
            tiny(labelled_shards, tmp_path),
            init=str(whole / "best.pt"),
            model=EncoderConfig(side=64, width=32, depth=3, heads=2),
        )
        finetune.initialize(Recognition(config, *splits(labelled_shards)).model(), config)
    with pytest.raises(ValueError, match=r"Set --model.width 48 \(now 32\), --model.depth 2 \(now 1\)"):
        config = dataclasses.replace(tiny(labelled_shards, tmp_path), init=str(whole))
        finetune.initialize(Recognition(config, *splits(labelled_shards)).model(), config)
    with pytest.raises(ValueError, match="no such run folder or file"):
        config = dataclasses.replace(tiny(labelled_shards, tmp_path), init=str(tmp_path / "no"))
        finetune.initialize(Recognition(config, *splits(labelled_shards)).model(), config)


@pytest.mark.launch
def test_a_runs_checkpoint_gives_its_encoder_at_another_size(
    labelled_shards: Path, tmp_path: Path, whole: Path, rank: Rank
):
    config = dataclasses.replace(
        tiny(labelled_shards, tmp_path),
        init=str(whole),
        model=EncoderConfig(side=96, width=48, depth=2, heads=2),
    )
    model = Recognition(config, *splits(labelled_shards)).model()
    finetune.initialize(model, config)
    saved = finetune.checkpoint_weights(whole / "checkpoints" / "images-000000000512")
    torch.testing.assert_close(
        model.encoder.state_dict()["blocks.1.mlp.fc1.weight"], saved["encoder.blocks.1.mlp.fc1.weight"]
    )


@pytest.mark.launch
def test_the_run_that_init_names_is_read_once_left_as_it_is_and_not_needed_to_go_on(
    labelled_shards: Path, tmp_path: Path, whole: Path
):
    init = tmp_path / "init"
    shutil.copytree(whole, init)
    saved = sorted((init / "checkpoints").glob("images-*"))
    state = saved[-1] / "state" / "mp_rank_00_model_states.pt"
    state.write_bytes(state.read_bytes()[:-1])
    flags = ("--init", str(init), "--train.images", "128", "--train.micro-batch", "4")
    run = tune(tmp_path / "run", labelled_shards, *flags, ranks=2)
    assert run.wait() == [0, 0], run.output()
    assert run.output().count(f"{saved[-1].name} is damaged") == 1
    assert sorted((init / "checkpoints").glob("*images-*")) == saved
    shutil.rmtree(init)
    again = tune(tmp_path / "run", labelled_shards, *flags, ranks=2)
    assert again.wait() == [0, 0], again.output()


def splits(shards: Path):
    return open_shards(shards, "train"), open_shards(shards, "val")


def test_a_running_mean_is_refused_under_zero_3():
    config = dataclasses.replace(demo(), recognition=RecognitionConfig(ema=0.99))
    with pytest.raises(ValueError, match="needs whole parameters"):
        finetune.ema_of(torch.nn.Linear(1, 1), config, {"zero_optimization": {"stage": 3}})
