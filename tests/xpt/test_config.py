from pathlib import Path

import pytest

from xpt.command_line import parse
from xpt.config import (
    PRESETS,
    Config,
    MaskConfig,
    ModelConfig,
    TrainConfig,
    as_json,
    demo,
    differing_fields,
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_carry_their_name(name: str):
    assert PRESETS[name]().preset == name


def test_default_preset_is_the_papers_model():
    config = parse([])
    assert (config.model.side, config.model.tokens, config.model.depth, config.model.width) == (
        1280,
        6400,
        24,
        1024,
    )
    assert (config.model.decoder_depth, config.model.decoder_width) == (8, 512)
    assert config.kept == 640


def test_flags_override_the_preset():
    config = parse(["--preset", "demo", "--train.images", "32", "--ds_config", "a.json", "--local_rank=1"])
    assert config.train.images == 32
    assert config.ds_config == "a.json"
    assert config.model == demo().model
    assert config.run_dir == "runs/demo"


def test_shards_come_from_the_environment_where_no_flag_names_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XPT_DATA", "/shards")
    assert parse([]).data.path == "/shards"
    assert parse(["--data.path", "/others"]).data.path == "/others"


def test_a_run_remembers_its_shards_wherever_it_is_looked_at_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert parse(["--data.path", "shards"]).data.path == str(tmp_path / "shards")


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"vit_l_128: no such preset. Did you mean vit_l_1280\?"):
        parse(["--preset=vit_l_128"])


def test_unknown_field_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        parse(["--train.imges", "5"])
    assert stopped.value.code != 0
    assert "--train.images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(side=100), "model.side: got 100"),
        (lambda: ModelConfig(heads=7), "model.heads: got 7"),
        (lambda: ModelConfig(feature_maps=True), "model.feature_maps: got True"),
        (lambda: ModelConfig(activation_gb=-1.0), "model.activation_gb: got -1.0"),
        (lambda: MaskConfig(ratio=1.0), "mask.ratio: got 1.0"),
        (lambda: MaskConfig(keep_inside=0.0), "mask.keep_inside: got 0.0"),
        (lambda: TrainConfig(images=0), "train.images: got 0"),
        (lambda: Config(model=ModelConfig(side=32), mask=MaskConfig(ratio=0.99)), "mask.ratio"),
    ],
)
def test_field_out_of_range_is_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_batch_is_never_larger_than_the_run():
    train = TrainConfig(images=2, batch=256)
    assert (train.global_batch, train.steps, train.accumulation(1)) == (2, 1, 1)


def test_accumulation_covers_the_batch():
    train = TrainConfig(images=10_000, batch=96, micro_batch=8)
    assert [train.accumulation(n) for n in (1, 2, 4, 12)] == [12, 6, 3, 1]


def test_world_size_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"96 images per step cannot be shared equally by 5 ranks.*multiple of 5"
    ):
        TrainConfig(batch=96).accumulation(5)
    with pytest.raises(ValueError, match=r"--train.micro_batch 6"):
        TrainConfig(batch=12, micro_batch=8).accumulation(1)


def test_differing_fields_survive_json_and_ignore_operational_ones():
    theirs = as_json(demo())
    assert differing_fields(demo(), theirs) == []
    theirs["train"]["base_lr"] = 1.0
    theirs["train"]["log_images"] = 1
    theirs["data"]["path"] = "elsewhere"
    (line,) = differing_fields(demo(), theirs)
    assert line.startswith("train.base_lr: 1.0 in the checkpoint")
