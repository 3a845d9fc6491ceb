"""Say what a finished run has learned and where to look: `python -m xpt.summary RUN`."""

import json
import sys
from pathlib import Path

from rich.console import Console

from xpt.evaluation.report_scores import MODEL
from xpt.files import METRICS, read_json_lines
from xpt.monitoring.run_page import PAGE


def summary(run: Path) -> str:
    """A few lines on a run folder. Raises ValueError where it has no validation yet."""
    scores = [row for row in read_json_lines(run / METRICS) if "val/loss" in row]
    if not scores:
        raise ValueError(f"{run}: no validation in its metrics; train it first, with --run_dir {run}")
    first, last = scores[0], scores[-1]
    picture = max((run / "pictures").glob("reconstruction-*.png"))
    latest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    return "\n".join(
        [
            f"Validation loss on films of patients never trained on, after {last['images']:,} images:",
            f"  {first['val/loss']:8.4f}  before training",
            f"  {last['val/patch_mean']:8.4f}  of knowing each hidden patch's mean",
            f"  {last['val/loss']:8.4f}  now",
            "Look at:",
            f"  {picture}  (film, what the encoder saw, what the decoder made of it)",
            f"  {run / PAGE}  (curves, pictures, and whether anything is wrong)",
            f"  {latest}  (the checkpoint)",
            f"  {run / METRICS}  (one line per interval)",
            f"  tensorboard --logdir {run}",
        ]
    )


def first_reports(run: Path) -> str:
    """What an evaluated run of the task `report` wrote for one study, beside the truth.

    Raises ValueError where it has not been evaluated.
    """
    if not (run / "evaluation.json").is_file():
        raise ValueError(f"{run}: no reports in it; write them first: xpt-evaluate {run}")
    split = json.loads((run / "evaluation.json").read_text())["split"]
    rows = read_json_lines(run / f"reports-{split}.jsonl")
    study = rows[0]["study"]
    lines = [f"Study {study}, of a patient never trained on:"]
    for row in (row for row in rows if row["study"] == study):
        lines += [f"  {row['language']}, truth:   {row['reference']}"]
        lines += [f"  {row['language']}, written: {row[MODEL]}"]
    page = run / "evaluation.html"
    return "\n".join([*lines, "Look at:", f"  {page}  (studies, texts, where the model looked)"])


def main() -> None:
    run = Path(sys.argv[1])
    text = first_reports(run) if any(run.glob("reports-*.jsonl")) else summary(run)
    Console(highlight=False, soft_wrap=True).print(text, markup=False)


if __name__ == "__main__":
    main()
