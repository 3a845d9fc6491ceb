"""The arms of the ablation and its table; the runs themselves are those of the trainer's tests."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.ablation import BASE, UNTRAINED, Arm, Options, arms_of, table_of
from benchmarks.forest import Bar, forest
from xpt.command_line import parse
from xpt.config import demo
from xpt.flops import work


def test_every_arm_is_what_its_flags_say():
    for arm in arms_of(Options(images=600, shards=Path("x"))):
        parsed = parse(["--preset", "demo", "--data.path", "x", *arm.flags])
        assert (parsed.mask, parsed.model) == (arm.config.mask, arm.config.model), arm.name


def test_arms_of_other_cost_are_trained_once_more_for_equal_compute():
    arms = {arm.name: arm for arm in arms_of(Options(images=1000, shards=Path("x")))}
    batch = demo().train.batch
    compute = 1000 * work(demo()).training
    for name, arm in arms.items():
        assert arm.images % batch == 0
        equal = f"{name}, equal compute"
        if name.endswith("equal compute"):
            assert arm.images * work(arm.config).training == pytest.approx(compute, rel=0.02)
        else:
            assert arm.images == 1000
            assert (equal in arms) == (abs(work(arm.config).training * 1000 / compute - 1) > 0.02)
    assert "decoder: cross, equal compute" in arms
    assert "masks: random, equal compute" not in arms


def write_run(folder: Path, images: int, logit_NC: np.ndarray, target_NC: np.ndarray) -> None:
    (folder / "evidence").mkdir(parents=True, exist_ok=True)
    patients = [f"p{i // 2}" for i in range(len(logit_NC))]
    val = {"patients": patients, "target": target_NC.tolist(), "logit": logit_NC.tolist()}
    content = {"mean": {"logistic": {"value": 0.5}}, "val": val}
    (folder / "evidence" / f"probe-{images:012d}.json").write_text(json.dumps(content))


def test_the_table_compares_arms_on_the_same_films(tmp_path: Path):
    rng = np.random.default_rng(0)
    target_NC = rng.integers(0, 2, (80, 2)).astype(float)
    options = Options(out=tmp_path, seeds=2)
    arms = [
        Arm(name=BASE, flags=(), config=demo(), images=800),
        Arm(name="masks: worse", flags=(), config=demo(), images=800),
    ]
    wanted: dict[str, list[float]] = {BASE: [], "masks: worse": [], UNTRAINED: []}
    for arm, noise in zip(arms, (0.5, 2.0), strict=True):
        for seed in range(2):
            run = tmp_path / f"{arm.name.replace(': ', '-')}-{seed}"
            for images, scale, name in ((0, 20.0, UNTRAINED), (800, noise, arm.name)):
                logit_NC = target_NC + scale * rng.normal(size=target_NC.shape)
                write_run(run, images, logit_NC, target_NC)
                if name != UNTRAINED or arm.name == BASE:
                    wanted[name] += [roc_auc_score(target_NC[:, c], logit_NC[:, c]) for c in range(2)]
    rows = {row["arm"]: row for row in table_of(options, arms)}
    assert list(rows) == [BASE, "masks: worse", UNTRAINED]
    for name, values in wanted.items():
        assert rows[name]["auroc"]["value"] == pytest.approx(np.mean(values))
        gap = rows[name]["difference"]
        assert gap["value"] == pytest.approx(np.mean(values) - np.mean(wanted[BASE]))
        assert gap["low"] <= gap["value"] <= gap["high"]
    assert rows[BASE]["difference"]["low"] == rows[BASE]["difference"]["high"] == 0
    assert rows["masks: worse"]["difference"]["high"] < 0


def test_the_plot_tells_intervals_that_hold_zero_from_others():
    svg = forest(
        "a < b", [Bar(name="x", value=0.1, low=-0.1, high=0.3), Bar(name="y", value=1, low=0.5, high=2)]
    )
    assert "a &lt; b" in svg
    assert svg.count("#1565c0") == svg.count("#c62828") == 2
