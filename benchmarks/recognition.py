"""What pretraining is worth on synthetic patients.

    python -m benchmarks.recognition --work FOLDER [--json FILE]

Two questions, three seeds, intervals by patient on films of patients that no model has seen:

1. At 10% of the labels, does fine-tuning from a pretrained encoder beat training from scratch?
2. Do frozen pretrained features separate every finding? Beside them the film's grey values, without an
   encoder, because phantoms are easier than patients.

Findings are large enough for 96 pixels (`phantom_shards.py`), films are cropped to the chest. Everything lies
in FOLDER: a step that is done is not done again, so a killed benchmark goes on. All on one CPU thread. What
resolution is worth is asked by `benchmarks.resolution`.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.phantom_shards import large_findings_shards
from shards_tool.phantom.findings import FINDINGS
from xpt.config import DataConfig
from xpt.data.index import open_shards
from xpt.data.loader import evaluation_loader
from xpt.data.samples import read_samples
from xpt.evaluation.predictions import Predictions, read_predictions
from xpt.files import write_atomically
from xpt.metrics import Difference, Statistic, auroc_draws, paired_difference

SEEDS = (0, 1, 2)
PROBES = ("logistic", "knn", "attentive")
CHEST = ("--data.crop_to", "chest")
MODEL = (
    *("--model.side", "96", "--model.patch", "8", "--model.width", "128", "--model.depth", "4"),
    *("--model.heads", "4", *CHEST),
)
PRETRAINING = (
    *("--model.decoder_width", "128", "--model.decoder_depth", "2", "--model.decoder_heads", "4"),
    *("--train.batch", "32", "--train.micro_batch", "32"),
    *("--train.base_lr", "0.012", "--train.eval_films", "256"),
)
TRAINING = ("--train.batch", "16", "--train.micro_batch", "16", "--train.base_lr", "0.016")
GRID = ("--recognition.pool", "grid")


@dataclass(frozen=True, kw_only=True)
class Options:
    work: Path
    """Where archives, shards and runs lie."""
    json: Path | None = None
    patients: int = 6_000
    """Of the archive with all findings; one film each."""
    pretrain_images: int = 120_000
    finetune_images: int = 8_000


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.work.mkdir(parents=True, exist_ok=True)
    findings = large_findings_shards(options.work, patients=options.patients, side=160)
    pretrained = pretrained_encoder(options.work, findings, options.pretrain_images)
    results: dict[str, object] = {"versions": sys.version}
    probes = {f"frozen, {p}": probe(options, findings, pretrained, p) for p in PROBES}
    probes["grey values, no encoder"] = grey_values(findings)
    tuned = {
        start: [
            tune(
                options.work, f"{start}-{seed}", findings, seed, init, options.finetune_images, 0.1,
                *MODEL, *GRID,
            )
            for seed in SEEDS
        ]
        for start, init in (("pretrained", str(pretrained)), ("scratch", ""))
    }  # fmt: skip
    table = Table("", "AUROC per seed", "mean")
    for name, runs in {
        **{f"10% of labels, {k}: macro": v for k, v in tuned.items()},
        **{f"{k}: macro": [v] for k, v in probes.items()},
    }.items():
        areas = [float(macro(run)(np.ones((1, len(run.keys))))[0]) for run in runs]
        results[name] = areas
        table.add_row(name, ", ".join(f"{a:.3f}" for a in areas), f"{np.mean(areas):.3f}")
    gain = compare(tuned["pretrained"], tuned["scratch"])
    results["pretrained - scratch"] = dataclasses.asdict(gain.interval) | {"p_value": gain.p_value}
    span = f"{gain.interval.low:+.3f} to {gain.interval.high:+.3f}, p {gain.p_value:.4f}"
    table.add_row("pretrained - scratch, 10% of labels", span, f"{gain.interval.value:+.3f}")
    for name, found in probes.items():
        results[name] = dict(zip(found.findings, per_finding(found), strict=True))
    Console().print(table)
    Console().print(results)
    if options.json:
        write_atomically(options.json, json.dumps(results, indent=1) + "\n")


def pretrained_encoder(work: Path, shards: Path, images: int) -> Path:
    """A pretraining run on the films of `shards`, without their labels."""
    return step(
        work / "pretrained",
        "xpt/train.py",
        *("--data.path", str(shards), "--train.images", str(images)),
        *("--train.warmup_images", str(images // 20), "--train.log_images", "3200"),
        *("--train.checkpoint_images", "24000", "--train.eval_images", "24000", *MODEL, *PRETRAINING),
    )


def step(run: Path, program: str, *flags: str) -> Path:
    """Run a program of xpt to its end, unless it has come there; its CPU time goes to `RUN/cpu_seconds`."""
    done = run / "cpu_seconds"
    if not done.exists():
        command = [sys.executable, program, "--preset", "demo", "--run_dir", str(run), *flags]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        write_atomically(done, f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before:.0f}\n")
    return run


def tune(
    work: Path, name: str, data: Path, seed: int, init: str, images: int, fraction: float, *flags: str
) -> Predictions:
    """Fine-tune, choose by validation, and predict the test films."""
    run = step(
        work / name,
        "xpt/finetune.py",
        *("--data.path", str(data), "--init", init, "--train.seed", str(seed)),
        *("--train.images", str(images), "--train.warmup_images", str(images // 10)),
        *("--train.eval_images", str(images // 8), "--train.checkpoint_images", str(images // 2)),
        *("--recognition.fraction", str(fraction), "--recognition.fraction_seed", str(seed)),
        *("--recognition.layer_decay", "0.75" if init else "1.0", *TRAINING, *flags),
    )
    return test_predictions(run)


def probe(options: Options, data: Path, pretrained: Path, protocol: str) -> Predictions:
    run = step(
        options.work / f"frozen-{protocol}",
        "xpt/finetune.py",
        *("--data.path", str(data), "--init", str(pretrained), "--recognition.protocol", protocol),
        *("--train.images", "16000", "--train.eval_images", "4000", "--train.warmup_images", "1600"),
        *("--recognition.l2", "30", *TRAINING, *MODEL, *GRID),
        *("--recognition.pool", "mean" if protocol == "attentive" else "grid"),
    )
    return test_predictions(run)


def test_predictions(run: Path) -> Predictions:
    path = run / "predictions-test.parquet"
    if not path.exists():
        subprocess.run([sys.executable, "xpt/evaluate.py", str(run)], check=True)
    return read_predictions(path)


def grey_values(data: Path) -> Predictions:
    """Logistic regression on 24 x 24 grey values of the chest."""
    features, samples = {}, {}
    for split in ("train", "test"):
        shards = open_shards(data, split)
        rows = []
        with evaluation_loader(
            shards,
            DataConfig(crop_to="chest", threads=1, readers=1),
            side=24,
            patch=8,
            batch=32,
        ) as batches:
            for batch in batches:
                rows.append(batch.image_BCHW[batch.weight_B > 0].flatten(1).numpy() / 255)
        features[split], samples[split] = np.concatenate(rows), read_samples(shards)
    target = {
        split: np.array([[labels[name] for name in FINDINGS] for labels in found.labels])
        for split, found in samples.items()
    }
    logit_NC = np.stack(
        [
            make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
            .fit(features["train"], target["train"][:, c])
            .decision_function(features["test"])
            for c in range(len(FINDINGS))
        ],
        axis=1,
    )
    return Predictions(
        keys=samples["test"].keys,
        patients=samples["test"].patients,
        findings=FINDINGS,
        kind="multi_label",
        target_NC=target["test"].astype(np.float64),
        logit_NC=logit_NC,
    )


def per_finding(found: Predictions) -> list[float]:
    ones = np.ones((1, len(found.keys)))
    return [
        float(auroc_draws(found.target_NC[:, c] > 0.5, found.logit_NC[:, c], ones)[0])
        for c in range(len(found.findings))
    ]


def macro(found: Predictions) -> Statistic:
    """Mean AUROC over the findings; every label of a phantom is known."""

    def statistic(weight_RN: np.ndarray) -> np.ndarray:
        areas = [
            auroc_draws(found.target_NC[:, c] > 0.5, found.logit_NC[:, c], weight_RN)
            for c in range(len(found.findings))
        ]
        return np.mean(areas, 0)

    return statistic


def compare(ours: list[Predictions], theirs: list[Predictions]) -> Difference:
    """Difference of the mean over the seeds, by patient, on the same films."""
    assert all(run.keys == ours[0].keys for run in (*ours, *theirs))

    def mean(runs: list[Predictions]) -> Statistic:
        return lambda weight_RN: np.mean([macro(run)(weight_RN) for run in runs], 0)

    return paired_difference(mean(ours), mean(theirs), ours[0].patients)


if __name__ == "__main__":
    main()
