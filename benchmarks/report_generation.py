"""Whether reports are read from the image: findings in generated reports of synthetic patients.

    python -m benchmarks.report_generation --work FOLDER [--json FILE]

An encoder is pretrained without labels and texts, as in `benchmarks.recognition` (in the same FOLDER it is
the same one). From it a small model learns the impressions of both languages, once per seed, and writes
those of patients that no model has seen. Beside the model: the commonest report, that of the nearest
training study, and its own reports given to other patients. What is done in FOLDER is not done again.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.phantom_shards import large_findings_shards
from benchmarks.recognition import MODEL as ENCODER
from benchmarks.recognition import pretrained_encoder
from xpt.evaluation.report_scores import FREQUENT, MODEL, NEAREST, SHUFFLED
from xpt.files import write_atomically

SEEDS = (0, 1, 2)
MODEL_FLAGS = (
    *ENCODER,
    *("--report.section", "impression", "--report.longest", "64", "--report.vocabulary", "512"),
    *("--report.pool", "1", "--report.width", "96", "--report.depth", "2", "--report.heads", "4"),
    *("--report.beams", "1", "--report.layer_decay", "0.75"),
)
TRAIN_FLAGS = (
    *("--train.batch", "16", "--train.micro_batch", "16", "--train.base_lr", "0.012"),
    *("--train.warmup_images", "2000", "--train.log_images", "1600", "--train.eval_images", "8000"),
    *("--train.checkpoint_images", "16000", "--train.eval_films", "200"),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    work: Path
    """Where archive, shards and runs lie."""
    json: Path | None = None
    patients: int = 6_000
    pretrain_images: int = 120_000
    studies: int = 32_000
    """Seen in training, per seed."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.work.mkdir(parents=True, exist_ok=True)
    shards = large_findings_shards(options.work, patients=options.patients, side=160)
    encoder = pretrained_encoder(options.work, shards, options.pretrain_images)
    found = {seed: _evaluated(options, shards, encoder, seed) for seed in SEEDS}
    table = Table("language", "who", *(f"seed {seed}: finding F1" for seed in SEEDS))
    for language in ("en", "zh"):
        for name in (MODEL, FREQUENT, NEAREST, SHUFFLED):
            values = [
                scores["languages"][language]["rows"][name]["findings"]["micro"]["f1"]
                for scores in found.values()
            ]
            table.add_row(
                language, name, *(f"{v['value']:.3f} ({v['low']:.3f}-{v['high']:.3f})" for v in values)
            )
    Console().print(table)
    if options.json:
        write_atomically(options.json, json.dumps(found, indent=1) + "\n")


def _evaluated(options: Options, shards: Path, encoder: Path, seed: int) -> dict[str, Any]:
    run = options.work / f"report-{seed}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if not (run / "evaluation.json").exists():
        command = [
            *(sys.executable, "xpt/finetune.py", "--preset", "demo", "--task", "report"),
            *("--data.path", str(shards), "--run_dir", str(run), "--train.seed", str(seed)),
            *("--init", str(encoder), "--train.images", str(options.studies)),
            *MODEL_FLAGS,
            *TRAIN_FLAGS,
        ]
        subprocess.run(command, check=True, env=environment)
        subprocess.run([sys.executable, "xpt/evaluate.py", str(run)], check=True, env=environment)
    return json.loads((run / "evaluation.json").read_text())


if __name__ == "__main__":
    main()
