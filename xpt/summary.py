"""Say what a finished run has learned and where to look: `python -m xpt.summary RUN`."""

import json
import sys
from pathlib import Path

from rich.console import Console


def summary(run: Path) -> str:
    """A few lines on a run folder. Raises ValueError where it has no validation yet."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    scores = [row for row in map(json.loads, lines) if "val/loss" in row]
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
            f"  {latest}  (the checkpoint)",
            f"  {path}  (one line per interval)",
            f"  tensorboard --logdir {run}",
        ]
    )


def main() -> None:
    Console(highlight=False, soft_wrap=True).print(summary(Path(sys.argv[1])), markup=False)


if __name__ == "__main__":
    main()
