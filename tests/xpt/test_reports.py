"""Runs that learn to write reports: that the text comes from the image, and what is refused."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from shards_tool.build import build
from shards_tool.settings import BuildSettings
from tests.xpt.conftest import rows, start
from xpt import evaluate, predict, report
from xpt.config import EncoderConfig, as_json
from xpt.data.index import open_shards
from xpt.finetune_config import FinetuneConfig, demo, from_json
from xpt.report_config import ReportConfig
from xpt.tasks import studies
from xpt.tasks.best import BEST, load_writer
from xpt.tasks.report import ReportWriting
from xpt.text import scores as text_scores
from xpt.training import checkpoint
from xpt.training.saved import newest

TEXTS = {
    True: ("FINDINGS: There is a nodule. IMPRESSION: Nodule.", "影像所见：左肺见结节影。影像诊断：结节。"),
    False: ("FINDINGS: Lungs are clear. IMPRESSION: Normal.", "影像所见：双肺清晰。影像诊断：未见异常。"),
}
TINY = [
    *("--preset", "demo", "--task", "report", "--languages", "en", "zh", "--model.side", "64"),
    *("--model.width", "48", "--model.depth", "2", "--report.pool", "2", "--report.width", "48"),
    *(
        "--report.section",
        "impression",
        "--report.longest",
        "16",
        "--report.vocabulary",
        "300",
        "--report.beams",
        "2",
        "--report.dropout",
        "0",
    ),
    *("--train.images", "1440", "--train.batch", "16", "--train.micro-batch", "8", "--train.base-lr", "0.08"),
    *("--train.warmup-images", "64", "--data.crop-scale", "0.9", "1.0", "--report.layer-decay", "1.0"),
    *("--train.log-images", "64", "--train.eval-images", "320", "--train.checkpoint-images", "320"),
]


def build_shards(folder: Path, table: list[dict[str, str]], picture: Callable[[str], np.ndarray]) -> Path:
    (folder / "films").mkdir(parents=True)
    for row in table:
        cv2.imwrite(str(folder / "films" / row["file"]), picture(row["file"]))
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    (folder / "key").write_text("0123456789abcdef" * 4)
    settings = BuildSettings(
        side=96, shard_size=8, fractions=(0.6, 0.2, 0.2), views="chest", contour="rect", reports="keep"
    )
    build(
        [folder / "films"], folder / "shards", settings, meta=[folder / "table.csv"], key_file=folder / "key",
        workers=0,
    )  # fmt: skip
    return folder / "shards"


def study_rows(number: int, *, has_nodule: bool) -> list[dict[str, str]]:
    """A frontal film, and in every third study a lateral one."""
    known = {"patient": f"p{number}", "study": f"s{number}"}
    known |= dict(zip(("report_en", "report_zh"), TEXTS[has_nodule], strict=True))
    films = [{"file": f"{number}-pa-{has_nodule}.png", "view": "PA", **known}]
    if number % 3 == 0:
        films.append({"file": f"{number}-lateral-{has_nodule}.png", "view": "LATERAL", **known})
    return films


def spotted(name: str) -> np.ndarray:
    """Noise, with a bright square on the frontal film where there is a nodule."""
    rng = np.random.default_rng(list(name.encode()))
    pixels = rng.integers(96, 160, (96, 96), dtype=np.uint8)
    if "-pa-True" in name:
        y = int(rng.integers(8, 64))
        pixels[y : y + 20, 20:40] = 255
    return pixels


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = [row for n in range(60) for row in study_rows(n, has_nodule=n % 2 == 0)]
    return build_shards(tmp_path_factory.mktemp("reported"), table, spotted)


@pytest.fixture(scope="module")
def whole(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = start(tmp_path_factory.mktemp("writers") / "whole", reported, job="finetune", base=TINY)
    assert run.wait() == [0], run.output()
    return run.folder


@pytest.mark.launch
def test_the_text_is_read_from_the_image(whole: Path, rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_scores.shutil, "which", lambda _: None)  # METEOR starts Java for each row
    best = torch.load(whole / BEST, weights_only=True)
    validations = [row["val/finding_f1"] for row in rows(whole) if "val/finding_f1" in row]
    assert best["val/finding_f1"] == max(validations)
    config = from_json(best["config"])
    assert as_json(config) == json.loads((whole / "config.json").read_text())["config"]

    found = evaluate.evaluate(evaluate.Options(run=whole, protocol="r2gen", examples=1), rank)
    assert found["section"] == "impression"
    for language in ("en", "zh"):
        content = found["languages"][language]
        assert content["rows"]["model"]["findings"]["micro"]["f1"]["value"] > 0.9
        assert content["model_minus"]["image shuffled"]["low"] > 0
        assert content["rows"]["model"]["words" if language == "en" else "characters"]["bleu"][0] > 0.8
        assert set(content["rows"]) == {
            "reference",
            "model",
            "most frequent report",
            "nearest neighbour",
            "image shuffled",
        }
    assert set(found["languages"]["zh"]["rows"]["model"]) >= {"characters", "words"}
    assert "r2gen" in found["languages"]["en"] and "r2gen" not in found["languages"]["zh"]
    lines = [json.loads(line) for line in (whole / "reports-test.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * found["studies"] and {line["language"] for line in lines} == {"en", "zh"}
    assert json.loads((whole / "evaluation.json").read_text())["studies"] == found["studies"]
    page = (whole / "evaluation.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 8 and "<mark>" in page

    # Without their texts, studies get the same reports.
    options = predict.Options(run=whole, shards=Path(config.data.path), out=tmp_path / "all", batch=4, part=3)
    predict.predict(options, rank)
    told = {(row["study"], row["patient"]): row for row in pq.read_table(options.out).to_pylist()}
    assert len(told) == 60
    for line in lines:
        assert told[line["study"], line["patient"]][f"report:{line['language']}"] == line["model"]


@pytest.mark.launch
def test_two_ranks_with_partitioned_weights_learn_the_same(reported: Path, whole: Path, tmp_path: Path):
    """ZeRO 3 gathers the weights of all that a step uses: encoder, connector, decoder, both languages."""
    (tmp_path / "zero3.json").write_text(
        json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    )
    flags = (
        "--ds_config",
        str(tmp_path / "zero3.json"),
        "--train.images",
        "128",
        "--train.eval-images",
        "64",
    )
    run = start(tmp_path / "run", reported, *flags, ranks=2, job="finetune", base=TINY)
    assert run.wait(timeout=200) == [0, 0], run.output()

    def first(folder: Path) -> dict[str, float]:
        """The end of the warm-up, to which the length of a run makes no difference."""
        return next(row for row in rows(folder) if row["images"] == 64 and "loss" in row)

    ours, theirs = first(run.folder), first(whole)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
    assert (run.folder / BEST).exists()


@pytest.mark.launch
def test_one_film_becomes_a_report_in_the_language_asked_for(whole: Path, reported: Path, tmp_path: Path):
    films = reported.parent / "films"

    def told(name: str, lang: str, *more: str) -> str:
        images = tuple(films / n for n in (name, *more))
        (text,) = report.write_reports(report.Options(images=images, run=whole, lang=lang))  # pyright: ignore
        return text

    assert told("0-pa-True.png", "en") == "Nodule." and told("0-pa-True.png", "zh") == "结节。"
    assert told("1-pa-False.png", "zh") == "未见异常。"
    assert "odule" in told("0-pa-True.png", "en", "0-lateral-True.png")
    with pytest.raises(ValueError, match="got 3 films, wanted 1 to 2"):
        told("0-pa-True.png", "en", "0-pa-True.png", "0-pa-True.png")
    (tmp_path / "no.dcm").write_bytes(b"no film")
    with pytest.raises(ValueError, match=r"no\.dcm: cannot be read as a chest film"):
        report.write_reports(report.Options(images=(tmp_path / "no.dcm",), run=whole))


@pytest.mark.launch
def test_draws_follow_the_likeliest_report(whole: Path, reported: Path):
    film = reported.parent / "films" / "0-pa-True.png"

    def told(**draw: Any) -> list[str]:
        return report.write_reports(report.Options(images=(film,), run=whole, lang="en", **draw))

    drawn = told(draws=16, temperature=3.0, top_p=1.0)
    assert len(drawn) == 17 and drawn[0] == "Nodule." and len(set(drawn[1:])) > 8
    assert drawn == told(draws=16, temperature=3.0, top_p=1.0)
    assert drawn[1:] != told(draws=16, temperature=3.0, top_p=1.0, seed=1)[1:]
    assert set(told(draws=4, top_p=1e-6)) == {"Nodule."}
    with pytest.raises(ValueError, match="temperature above 0"):
        told(draws=1, temperature=0.0)


@pytest.mark.launch
def test_a_tokenizer_of_another_run_is_refused(whole: Path, tmp_path: Path, rank):
    shutil.copytree(whole, tmp_path / "run")
    theirs = json.loads((whole / "tokenizer.json").read_text())
    theirs["model"]["merges"] = theirs["model"]["merges"][:-1]
    (tmp_path / "run" / "tokenizer.json").write_text(json.dumps(theirs))
    with pytest.raises(ValueError, match="it is another run's: got fingerprint"):
        load_writer(tmp_path / "run", torch.device("cpu"))
    config = from_json(torch.load(whole / BEST, weights_only=True)["config"])
    job = checkpoint.Job(config=config, data_hash="", world_size=1, zero_stage=1, tokenizer="another")
    saved = newest(tmp_path / "run")
    assert saved is not None
    with pytest.raises(ValueError, match=r"learned with the tokenizer .*, got another"):
        checkpoint._check_same_job(saved, job)


def tiny(shards: Path, run: Path, **settings) -> FinetuneConfig:
    config = demo()
    return dataclasses.replace(
        config,
        task="report",
        run_dir=str(run),
        data=dataclasses.replace(config.data, path=str(shards)),
        model=EncoderConfig(side=64, width=32, depth=1, heads=2),
        report=dataclasses.replace(
            ReportConfig(width=32, heads=2, depth=1, pool=2, vocabulary=300), **settings
        ),
    )


def task(shards: Path, run: Path, **settings) -> ReportWriting:
    config = tiny(shards, run, **settings)
    return ReportWriting(config, open_shards(shards, "train"), open_shards(shards, "val"))


def test_a_study_is_one_input_with_its_films_and_texts(reported: Path, tmp_path: Path, rank):
    writing = task(reported, tmp_path)
    split = writing.train
    by_study = {name: row for row, name in enumerate(split.names)}
    assert len(by_study) == len(split) == len(split.groups)
    films = {row: set(keys) for row, keys in enumerate(split.groups.rows_NV.tolist())}
    assert {len(keys) for keys in films.values()} == {1, 2}
    assert sum(map(len, films.values())) == len(open_shards(reported, "train"))
    assert set(split.texts[0]) == {"en", "zh"}
    (tmp_path / "alone").mkdir()
    alone = task(reported, tmp_path / "alone", views=1, section="impression", languages=("zh",))
    assert alone.train.groups.rows_NV.shape[1] == 1
    assert {text for texts in alone.train.texts for text in texts.values()} == {"结节。", "未见异常。"}


def test_a_split_without_a_frontal_film_is_passed_over(whole: Path, tmp_path: Path, rank, caplog):
    table = [row for n in range(24) for row in study_rows(3 * n, has_nodule=False)]
    shards = build_shards(tmp_path / "some", table, spotted)
    options = predict.Options(run=whole, shards=shards, out=tmp_path / "out")
    samples = pq.read_table(shards / "samples.parquet")
    laterals = {split: "LATERAL" if split == "test" else None for split in ("train", "val", "test")}
    views = [
        laterals[split] or view
        for split, view in zip(samples["split"].to_pylist(), samples["view"].to_pylist(), strict=True)
    ]
    column = samples.column_names.index("view")
    pq.write_table(samples.set_column(column, "view", [views]), shards / "samples.parquet")
    of_test = len({row["study"] for row in samples.to_pylist() if row["split"] == "test"})
    assert of_test and predict.predict(options, rank) == 24 - of_test
    assert f"split test: {of_test} studies left out ({of_test}: no frontal film)" in caplog.text
    with pytest.raises(ValueError, match="no study of test has a frontal film"):
        predict.predict(dataclasses.replace(options, split="test", out=tmp_path / "none"), rank)


def test_a_lateral_film_alone_changes_nothing_but_its_own_study(reported: Path, tmp_path: Path, rank):
    """What fills the rows of studies with fewer films reaches nobody."""
    model = task(reported, tmp_path).model().eval()
    image = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    valid = torch.ones(4, 16, dtype=torch.bool)
    there = torch.tensor([0, 1, 2])
    first = model.remember(image, valid, there, 2)
    image[3] = 255 - image[3]
    again = model.remember(image, valid, there, 2)
    torch.testing.assert_close(first.tokens_BSD, again.tokens_BSD, rtol=0, atol=0)
    assert first.is_valid_BS.sum(1).tolist() == [8, 4]


def test_validation_must_assert_a_finding_among_the_studies_that_it_looks_at(
    reported: Path, tmp_path: Path, rank
):
    val = task(reported, tmp_path).val
    silent = next(n for n, texts in enumerate(val.texts) if "odule" in texts["en"])
    assert silent > 0, "the first study of validation has a nodule"
    config = tiny(reported, tmp_path)

    def looking_at(films: int) -> None:
        train = dataclasses.replace(config.train, eval_films=films)
        splits = (open_shards(reported, name) for name in ("train", "val"))
        ReportWriting(dataclasses.replace(config, train=train), *splits)

    with pytest.raises(ValueError, match=f"none of the first {silent} reports in en asserts a finding"):
        looking_at(silent)
    looking_at(silent + 1)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"report_en": "", "report_zh": ""}, {}, "no both in en or zh, got reports in no language"),
        ({"report_en": "a" * 10_001}, {}, "has 10,001 characters, wanted at most 10,000"),
        ({"view": "LATERAL"}, {}, "no frontal film, only LATERAL.*leave_out"),
        ({}, {"languages": ("zh",)}, "language zh: no study of split train has a text.*reports in: en"),
        ({}, {"section": "impression", "languages": ("en",)}, "no impression in en"),
    ],
)
def test_reports_that_cannot_be_learned_are_refused(
    reported: Path, tmp_path: Path, rank, monkeypatch, change: dict, settings: dict, message: str
):
    real = studies.read_reported

    def changed(shards):
        films = real(shards)
        reports = [dict(texts) for texts in films.reports]
        views = list(films.views)
        if not change:
            reports = [{"en": "Nodule."} for _ in reports]
        elif "view" in change:
            views = ["LATERAL" if study == films.studies[0] else view
                     for view, study in zip(views, films.studies, strict=True)]  # fmt: skip
        else:
            for texts, study in zip(reports, films.studies, strict=True):
                if study == films.studies[0]:
                    texts.update({name.removeprefix("report_"): text for name, text in change.items()})
                    for name in [name for name, text in texts.items() if not text]:
                        del texts[name]
        return dataclasses.replace(films, reports=reports, views=views)

    monkeypatch.setattr(studies, "read_reported", changed)
    with pytest.raises(ValueError, match=message):
        task(reported, tmp_path, **settings)
    if change:
        kept = task(reported, tmp_path, unusable="leave_out", **settings)
        assert len(kept.train) == len(set(real(open_shards(reported, "train")).studies)) - 1


def test_a_study_in_two_splits_is_refused(reported: Path, tmp_path: Path, rank, monkeypatch):
    real = studies.read_reported

    def leaking(shards):
        films = real(shards)
        patients = [
            "the same" if study == films.studies[0] else patient
            for patient, study in zip(films.patients, films.studies, strict=True)
        ]
        return dataclasses.replace(films, patients=patients)

    monkeypatch.setattr(studies, "read_reported", leaking)
    with pytest.raises(ValueError, match="patient the same: in the splits train and val"):
        task(reported, tmp_path)
