"""Steps that are not finite, at two ranks: skipped together, noted, rolled back, alike after a restart."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.xpt.conftest import rows, start, trace
from xpt.training.stability import NORMS, Watch

POISON = """
import hashlib, json, sys, torch
from xpt import train

class Poisoned(train.MAE):
    def forward(self, image, contour, valid, position, *rest, **named):
        made = super().forward(image, contour, valid, position, *rest, **named)
        bad = [p // 8 in {1, 7, 8, 9} and p % 8 == 3 for p in position.tolist()]
        if not (self.training and any(bad)):
            return made
        worse = torch.where(torch.tensor(bad), torch.nan, 0.0)
        return made._replace(loss=made.loss + worse.sum(), loss_B=made.loss_B + worse)

def norm_and_digest(engine, norm=train.gradient_norm):
    # Of weights, moments and step counts, after each step.
    state = engine.optimizer.optimizer.state
    parts = [*engine.module.parameters(), *(v for of in state.values() for v in of.values())]
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in parts)).hexdigest()
    with open(sys.argv[sys.argv.index("--run_dir") + 1] + "-digests", "a") as file:
        if torch.distributed.get_rank() == 0:
            file.write(digest + "\\n")
    return norm(engine)

train.MAE, train.gradient_norm = Poisoned, norm_and_digest
"""
"""The loss of the fourth film of steps 1, 7, 8 and 9 is not a number: on one rank only."""
FLAGS = ["--ds_config", "ds_configs/zero2.json", "--train.max-skipped", "3", "--train.eval-images", "0"]


@pytest.fixture(scope="module")
def poisoned(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = start(
        tmp_path_factory.mktemp("poisoned") / "run", shards, *FLAGS,
        "--train.keep-checkpoints", "9", ranks=2, sabotage=POISON,
    )  # fmt: skip
    assert run.wait() == [0, 0], run.output()
    return run.folder


def skipped(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.launch
def test_skipped_steps_change_nothing_and_their_films_are_noted(poisoned: Path):
    digests = Path(f"{poisoned}-digests").read_text().split()
    changed = [a != b for a, b in pairwise(digests)]
    # The digest of step 9 is taken before the run goes back, that of step 10 after going back and a step.
    assert changed == [step not in (1, 7, 8, 9) for step in range(1, 12)]
    assert [(row["step"], row["not_finite"], len(row["films"])) for row in skipped(poisoned)] == [
        (step, "loss", 1) for step in (1, 7, 8, 9)
    ]


@pytest.mark.launch
def test_after_three_in_a_row_the_run_goes_back_to_its_weights_and_on_with_other_films(poisoned: Path):
    counted = {row["images"]: (row["skipped"], row["rollbacks"]) for row in rows(poisoned)}
    assert counted[72] == (3, 0)
    assert counted[80] == (4, 1)
    assert counted[96] == (4, 1)
    assert "loss" not in {row["images"]: row for row in rows(poisoned)}[80]
    saved = {p.name: p for p in (poisoned / "checkpoints").glob("images-*")}
    # None at 72, among skipped steps; one at 80, as soon as the run had gone back.
    assert sorted(saved) == [f"images-{images:012d}" for images in (24, 48, 80, 96)]

    def weights(images: int) -> dict[str, torch.Tensor]:
        path = saved[f"images-{images:012d}"] / "state" / "mp_rank_00_model_states.pt"
        return torch.load(path, weights_only=False)["module"]

    then, now, later = weights(48), weights(80), weights(96)
    assert all(torch.equal(value, now[name]) for name, value in then.items())
    assert not all(torch.equal(value, later[name]) for name, value in then.items())


@pytest.mark.launch
def test_a_run_that_goes_on_before_skipped_steps_skips_them_alike(
    shards: Path, poisoned: Path, tmp_path: Path
):
    again = tmp_path / "run"
    shutil.copytree(poisoned, again)
    for images in (80, 96):
        shutil.rmtree(again / "checkpoints" / f"images-{images:012d}")
    run = start(again, shards, *FLAGS, "--train.keep-checkpoints", "9", ranks=2, sabotage=POISON)
    assert run.wait() == [0, 0], run.output()
    assert "48 of 96 images done" in run.output()
    assert trace(again) == trace(poisoned)
    assert skipped(again) == skipped(poisoned)
    counts = [[row[name] for name in ("skipped", "rollbacks", "norm_spikes")] for row in rows(again)]
    assert counts == [
        [row[name] for name in ("skipped", "rollbacks", "norm_spikes")] for row in rows(poisoned)
    ]


STOPPED = """
import os, signal

class Stopped(train.MAE):
    def forward(self, image, contour, valid, position, *rest, **named):
        if position[0] // 8 == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(image, contour, valid, position, *rest, **named)

train.MAE = Stopped
"""
"""Asked in step 7, all ranks stop after step 8: the second of three that are skipped."""


@pytest.mark.launch
def test_a_stop_among_skipped_steps_leaves_the_last_clean_checkpoint_to_go_on_from(
    shards: Path, poisoned: Path, tmp_path: Path
):
    run = start(tmp_path / "run", shards, *FLAGS, ranks=2, sabotage=POISON + STOPPED)
    assert run.wait() == [75, 75], run.output()
    assert (
        "stopped after 72 images, as asked; the same command goes on from the last checkpoint" in run.output()
    )
    saved = sorted(p.name for p in (run.folder / "checkpoints").glob("images-*"))
    assert saved == [f"images-{images:012d}" for images in (24, 48)]
    run = start(run.folder, shards, *FLAGS, ranks=2, sabotage=POISON)
    assert run.wait() == [0, 0], run.output()
    assert "48 of 96 images done" in run.output()
    assert trace(run.folder) == trace(poisoned)
    assert skipped(run.folder) == skipped(poisoned)


def fed(watch: Watch, norms: list[float], first: int = 0, *, settle: bool = False) -> list[int]:
    found = []
    for step, norm in enumerate(norms, first):
        watch.add(step, torch.tensor(norm))
        found += watch.skipped(settle=settle)
    return found


def test_a_step_is_known_one_step_later_or_at_once_where_asked():
    watch = Watch(8)
    assert fed(watch, [1.0, torch.inf]) == []
    assert fed(watch, [1.0], 2) == [1]
    watch.add(3, torch.tensor(torch.nan))
    assert watch.skipped(settle=True) == [3]
    assert (watch.in_a_row, watch.counts["skipped"]) == (1, 2)


def test_a_rollback_is_due_after_as_many_in_a_row_as_were_set_and_not_before():
    watch = Watch(2)
    assert fed(watch, [torch.inf, 1.0, torch.inf, 1.0, 1.0]) == [0, 2]
    assert not watch.is_rollback_due
    # The second in a row becomes known with the step after it, which is then looked at too.
    assert fed(watch, [torch.inf, torch.inf, torch.inf], 5) == [5, 6, 7]
    assert watch.is_rollback_due
    watch.rolled_back()
    assert (watch.counts["rollbacks"], watch.in_a_row, watch.is_rollback_due) == (1, 0, False)


def test_spikes_of_norm_and_loss_are_counted_against_the_median_of_those_before():
    watch = Watch(8)
    fed(watch, [100.0] + [1.0] * (NORMS // 4), settle=True)  # too early to tell
    assert watch.counts["norm_spikes"] == 0
    fed(watch, [9.9, 10.1], settle=True)
    assert watch.counts["norm_spikes"] == 1
    for loss in [0.5, 0.5, 0.5, 0.5, 0.74, 0.76, float("nan")]:
        watch.add_loss(loss)
    assert watch.counts["loss_spikes"] == 1


def test_what_a_watch_knows_travels_in_a_checkpoint():
    norms = [1.0] * 20 + [torch.inf, 2.0, 30.0, torch.inf]
    whole, first = Watch(8), Watch(8)
    fed(whole, norms, settle=True)
    fed(first, norms[:21], settle=True)
    second = Watch(8, json.loads(json.dumps(first.state())))
    fed(second, norms[21:], 21, settle=True)
    assert second.state() == whole.state()
