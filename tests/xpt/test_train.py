"""Training runs: what they leave, how they stop, and that they go on as if they had not."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT
from tests.xpt.conftest import TINY, free_port, rows, start, trace
from xpt import train
from xpt.training.job import TOLD_TO_STOP, StopSignal
from xpt.training.saved import newest

pytestmark = pytest.mark.launch


def test_a_run_leaves_metrics_pictures_a_checkpoint_and_its_provenance(undisturbed: Path):
    steps = [row for row in rows(undisturbed) if "loss" in row]
    assert [row["images"] for row in steps] == list(range(8, 97, 8))
    assert {"lr", "grad_norm", "images_per_second", "data_wait_seconds", "peak_memory_gb"} <= set(steps[0])
    validations = [row for row in rows(undisturbed) if "val/loss" in row]
    assert [row["images"] for row in validations] == [0, 48, 96]
    assert validations[-1]["val/loss"] < 0.9 * validations[0]["val/loss"]

    provenance = json.loads((undisturbed / "config.json").read_text())
    assert provenance["config"]["model"]["width"] == 24
    assert provenance["versions"]["deepspeed"]
    assert provenance["revision"]

    board = EventAccumulator(str(undisturbed))
    board.Reload()
    assert {"train/loss", "train/lr", "val/loss"} <= set(board.Tags()["scalars"])
    assert set(board.Tags()["images"]) == {"reconstruction", "rect", "random"}

    pictures = sorted(p.name for p in (undisturbed / "pictures").iterdir())
    kinds = ("random", "reconstruction", "rect")
    assert pictures == [f"{kind}-{images:012d}.png" for kind in kinds for images in (0, 48, 96)]
    sheet = cv2.imread(str(undisturbed / "pictures" / pictures[-1]))
    assert sheet is not None
    assert sheet.shape[1] == 3 * 64

    kept = sorted(p.name for p in (undisturbed / "checkpoints").iterdir())
    assert kept == ["images-000000000072", "images-000000000096", "latest"]
    assert (undisturbed / "checkpoints" / "latest").read_text().strip() == kept[1]


def test_a_finished_run_started_again_does_nothing(shards: Path, undisturbed: Path):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    assert start(undisturbed, shards).wait() == [0]
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


LAUNCHERS = {
    "deepspeed": ["deepspeed", "--num_gpus", "2", "--master_port", "PORT", "xpt/train.py"],
    "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", "PORT", "xpt/train.py"],
    "slurm": ["slurm/pretrain.sh"],
}

FAKE_SRUN = """#!/bin/bash
# Two tasks of one step, as srun starts them.
while [[ $1 == -* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_NTASKS=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
wait $first && wait $second
"""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_documented_launchers_train_on_two_ranks(
    shards: Path, tmp_path: Path, undisturbed: Path, launcher: str
):
    for name, content in {"srun": FAKE_SRUN, "scontrol": "#!/bin/bash\necho NodeAddr=127.0.0.1 x\n"}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "XPT_DATA": str(shards),
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "this",
        "SLURM_JOB_ID": str(free_port()),
        "XPT_VENV": sys.prefix,
    }
    command = [word.replace("PORT", str(free_port())) for word in LAUNCHERS[launcher]]
    # For pretrain.sh the second --ds_config, of the same file, wins over its own.
    flags = ["--ds_config", "ds_configs/zero2.json", "--run_dir", str(tmp_path / "run"), *TINY]
    done = subprocess.run(
        [*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranks 2 on cpu" in done.stdout + done.stderr
    assert_close_trace(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (1, ["--train.micro-batch", "8"]),
        (2, ["--ds_config", "PARTITIONED", "--model.activation-checkpointing", "blocks"]),
        (2, ["--ds_config", "PARTITIONED", "--model.activation-checkpointing", "elementwise"]),
        (2, ["--ds_config", "ds_configs/zero3_offload.json"]),
        (4, ["--ds_config", "ds_configs/zero1.json"]),
    ],
    ids=["no accumulation", "zero3 recomputing", "zero3 recomputing less", "zero3 offload", "4 ranks zero1"],
)
def test_ranks_stages_and_accumulation_change_only_rounding(
    shards: Path, tmp_path: Path, undisturbed: Path, ranks: int, flags: list[str]
):
    flags = [partitioned(tmp_path) if flag == "PARTITIONED" else flag for flag in flags]
    run = start(tmp_path / "run", shards, *flags, ranks=ranks)
    # DeepSpeed compiles its CPU Adam at the first use of offload.
    assert run.wait(timeout=400) == [0] * ranks, run.output()
    assert_close_trace(run.folder, undisturbed)


def partitioned(folder: Path) -> str:
    """ZeRO 3 that keeps no parameter whole between its uses, however small."""
    ds = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    ds["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3.json").write_text(json.dumps(ds))
    return str(folder / "zero3.json")


@pytest.mark.parametrize(("stage", "decoder"), [(1, "self"), (2, "cross"), (3, "self")])
def test_bf16_trains_as_fp32_does(shards: Path, tmp_path: Path, undisturbed: Path, stage: int, decoder: str):
    flags = ["--ds_config", f"ds_configs/zero{stage}.json", "--model.decoder", decoder]
    run = start(tmp_path / "run", shards, *flags, "--train.precision", "bf16", "--train.images", "192")
    assert run.wait() == [0], run.output()
    losses = [row["val/loss"] for row in rows(run.folder) if "val/loss" in row]
    wanted = [row["val/loss"] for row in rows(undisturbed) if "val/loss" in row]
    assert losses[0] == pytest.approx(wanted[0], rel=0.1)
    assert losses[-1] < 0.9 * losses[0]


def assert_close_trace(ours: Path, theirs: Path):
    for a, b in zip(trace(ours), trace(theirs), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 2), (2, 3)])
def test_a_killed_run_goes_on_bit_identically(shards: Path, tmp_path: Path, ranks: int, stage: int):
    flags = ["--ds_config", f"ds_configs/zero{stage}.json"]
    whole = start(tmp_path / "whole", shards, *flags, ranks=ranks)
    assert whole.wait() == [0] * ranks, whole.output()

    broken = start(tmp_path / "broken", shards, *flags, ranks=ranks)
    broken.wait_for_images(40)
    broken.send(signal.SIGKILL)
    assert broken.wait() == [-signal.SIGKILL] * ranks
    assert not (broken.folder / "checkpoints" / "images-000000000096").exists()

    again = start(tmp_path / "broken", shards, *flags, ranks=ranks)
    assert again.wait() == [0] * ranks, again.output()
    assert "24 of 96 images done" in again.output()
    assert trace(again.folder) == trace(whole.folder)


def test_a_run_that_is_asked_to_stop_saves_first(shards: Path, tmp_path: Path, undisturbed: Path):
    run = start(tmp_path / "run", shards)
    run.wait_for_images(8)
    run.send(signal.SIGTERM)
    assert run.wait() == [TOLD_TO_STOP], run.output()
    saved = max((run.folder / "checkpoints").glob("images-*")).name
    assert 8 <= int(saved.removeprefix("images-")) < 96
    assert start(run.folder, shards).wait() == [0]
    assert trace(run.folder) == trace(undisturbed)


def test_a_damaged_checkpoint_is_passed_over_and_written_anew(
    shards: Path, tmp_path: Path, undisturbed: Path
):
    shutil.copytree(undisturbed, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    damaged = checkpoints / "images-000000000096" / "state" / "mp_rank_00_model_states.pt"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    run = start(tmp_path / "run", shards)
    assert run.wait() == [0], run.output()
    assert "images-000000000096 is damaged" in run.output()
    assert "72 of 96 images done" in run.output()
    found = newest(tmp_path / "run")
    assert found is not None
    assert found.images == 96
    assert (checkpoints / "damaged-images-000000000096").is_dir()
    assert trace(run.folder) == trace(undisturbed)


def test_a_non_finite_loss_stops_all_ranks_and_names_step_and_films(shards: Path, tmp_path: Path):
    run = start(tmp_path / "run", shards, "--train.base_lr", "1e30", "--train.clip_norm", "0", ranks=2)
    assert run.wait() == [2, 2]
    for rank in range(2):
        output = Path(f"{run.folder}-{rank}.log").read_text()
        assert re.search(r"the (loss|gradient) is not finite at step \d+, in films [0-9a-f]{16}", output)
    assert not list((run.folder / "checkpoints").glob("images-*"))


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    handlers = {
        n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_slurms_second_sigterm_changes_nothing_and_a_sigint_then_ends_at_once():
    with handlers_kept():
        stop = StopSignal()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *flags: str) -> str:
    """The error message of a run in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, *flags])
    monkeypatch.delenv("XPT_DATA", raising=False)
    with handlers_kept(), caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    return caplog.records[-1].getMessage()


def test_without_shards_it_says_how_to_make_them(monkeypatch, caplog):
    assert "xpt-shards build SRC... --out DIR" in failure(monkeypatch, caplog)


def test_a_missing_shard_folder_is_named(monkeypatch, caplog, tmp_path: Path):
    message = failure(monkeypatch, caplog, "--data.path", str(tmp_path / "none"))
    assert str(tmp_path / "none") in message
    assert "xpt-shards build" in message


def test_a_run_folder_that_cannot_be_written_is_named(monkeypatch, caplog, tmp_path: Path, shards: Path):
    (tmp_path / "file").write_text("")
    message = failure(
        monkeypatch, caplog, "--data.path", str(shards), "--run_dir", str(tmp_path / "file" / "run")
    )
    assert f"--run_dir {tmp_path / 'file' / 'run'}: cannot write there" in message


def test_a_full_disk_is_noticed_before_a_checkpoint_is_written(shards: Path, tmp_path: Path):
    sabotage = """
import shutil, types
shutil.disk_usage = lambda path: types.SimpleNamespace(free=1000)
"""
    run = start(tmp_path / "run", shards, ranks=2, sabotage=sabotage)
    assert run.wait() == [2, 2]
    assert "0.0 GB free, a checkpoint needs up to" in run.output()
    assert list((run.folder / "checkpoints").iterdir()) == []


def test_a_disk_that_fills_while_writing_keeps_the_last_checkpoint(shards: Path, tmp_path: Path):
    sabotage = """
import torch
save = torch.save
def fill(content, path, **options):
    if "images-000000000048" in str(path):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    save(content, path, **options)
torch.save = fill
"""
    run = start(tmp_path / "run", shards, sabotage=sabotage)
    assert run.wait() == [2]
    assert "the checkpoint could not be written (PytorchStreamWriter failed" in run.output()
    found = newest(run.folder)
    assert found is not None
    assert found.images == 24


def test_another_configurations_run_is_refused_with_the_field(shards: Path, undisturbed: Path):
    run = start(undisturbed, shards, "--train.weight-decay", "0.3")
    assert run.wait() == [2]
    assert "train.weight_decay: 0.05 in the checkpoint, 0.3 now" in run.output()


@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_that_is_not_finite_inside_an_interval_is_skipped(
    shards: Path, tmp_path: Path, stage: int
):
    """The loss stays finite; one gradient of the third step is infinite; metrics are read after the sixth."""
    sabotage = """
import torch
from xpt import train
steps, made = 0, train.MAE
def poison(gradient):
    global steps
    steps += 1
    return gradient * torch.inf if steps == 3 else gradient
def poisoned(config):
    model = made(config)
    model.decoder.head.bias.register_hook(poison)
    return model
train.MAE = poisoned
"""
    run = start(
        tmp_path / "run", shards, "--train.micro-batch", "8",
        "--train.log-images", "48", "--train.checkpoint-images", "48", "--train.eval-images", "0",
        "--ds_config", f"ds_configs/zero{stage}.json", sabotage=sabotage,
    )  # fmt: skip
    assert run.wait() == [0], run.output()
    (skipped,) = map(json.loads, (run.folder / "skipped.jsonl").read_text().splitlines())
    assert (skipped["images"], skipped["step"], skipped["not_finite"]) == (24, 2, "gradient")
    assert len(skipped["films"]) == 8
    assert [row["skipped"] for row in rows(run.folder)] == [1, 1]
