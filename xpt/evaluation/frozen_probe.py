"""What the frozen encoder knows of the labels, while the run goes on.

The ranks only compute features; a process of its own, started by rank 0, fits the probes on them:
`python -m xpt.evaluation.frozen_probe FEATURES.npz RESULT.json`.

Shape suffixes: N training films, Q validation films, C findings, D width of the features.
"""

import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16

from xpt.data.samples import Samples
from xpt.evaluation.probe import fit_logistic, knn_scores
from xpt.files import without_nan, write_atomically
from xpt.metrics import Statistic, auroc_draws, interval

LEAST = 3
"""Films of each split that must have a finding, and as many that must not, for it to be asked about."""
L2 = 100.0
DRAWS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What is asked of the features: findings of films whose labels are known."""

    findings: tuple[str, ...]
    target_NC: Float[np.ndarray, "N C"]
    """1 present, 0 absent, NaN unknown or uncertain."""
    target_QC: Float[np.ndarray, "Q C"]
    patients: list[str]
    """Of the validation films."""


def question_of(train: Samples, val: Samples, *, films: int) -> Question | None:
    """The findings that the first `films` films of both splits can be asked about; None where none can."""
    first = [samples.labels[:films] for samples in (train, val)]
    names = sorted({name for labels in first for film in labels for name in film})
    targets = [
        np.array([[film.get(name, np.nan) for name in names] for film in labels]).reshape(
            len(labels), len(names)
        )
        for labels in first
    ]
    targets = [np.where(target == -1, np.nan, target) for target in targets]
    asked = [
        c
        for c in range(len(names))
        if all(min((t[:, c] == 1).sum(), (t[:, c] == 0).sum()) >= LEAST for t in targets)
    ]
    if not asked:
        return None
    return Question(
        findings=tuple(names[c] for c in asked),
        target_NC=targets[0][:, asked],
        target_QC=targets[1][:, asked],
        patients=val.patients[:films],
    )


def answer(
    question: Question, features_ND: Float16[np.ndarray, "N D"], features_QD: Float16[np.ndarray, "Q D"]
) -> dict[str, Any]:
    """AUROC on the validation films, with its interval by patient, of logistic regression and of the nearest
    neighbours, for each finding and on average; and what the regression says of each of those films.
    Films whose features are NaN (damaged ones) are left out."""
    sound_N, sound_Q = (np.flatnonzero(np.isfinite(f).all(axis=1)) for f in (features_ND, features_QD))
    features_ND, features_QD = features_ND[sound_N], features_QD[sound_Q]
    question = Question(
        findings=question.findings,
        target_NC=question.target_NC[sound_N],
        target_QC=question.target_QC[sound_Q],
        patients=[question.patients[film] for film in sound_Q],
    )
    known, asked = (torch.from_numpy(features).float() for features in (features_ND, features_QD))
    target_NC = torch.from_numpy(question.target_NC)
    scores = {
        "logistic": fit_logistic(known, target_NC, l2=L2).logits(asked).numpy(),
        "knn": knn_scores(known, target_NC, asked).numpy(),
    }

    def measured(columns: list[int]) -> dict[str, Any]:
        return {
            method: asdict(interval(_mean_auroc(question, score_QC, columns), question.patients, draws=DRAWS))
            for method, score_QC in scores.items()
        }

    every = list(range(len(question.findings)))
    return {
        "films": {"train": len(known), "val": len(asked)},
        "mean": measured(every),
        "findings": {name: measured([c]) for c, name in enumerate(question.findings)},
        "val": {
            "patients": question.patients,
            "target": [[None if np.isnan(t) else t for t in row] for row in question.target_QC.tolist()],
            "logit": [[round(x, 4) for x in row] for row in scores["logistic"].tolist()],
        },
    }


def _mean_auroc(question: Question, score_QC: np.ndarray, columns: list[int]) -> Statistic:
    """Mean over the findings in `columns`; NaN for draws that do not define all of them."""

    def statistic(weight_RQ: np.ndarray) -> np.ndarray:
        values = []
        for c in columns:
            known_Q = ~np.isnan(question.target_QC[:, c])
            positive_Q = question.target_QC[known_Q, c] > 0.5
            values.append(auroc_draws(positive_Q, score_QC[known_Q, c], weight_RQ[:, known_Q]))
        return np.mean(values, axis=0)

    return statistic


def write_features(
    path: Path,
    question: Question,
    features_ND: Float16[np.ndarray, "N D"],
    features_QD: Float16[np.ndarray, "Q D"],
) -> None:
    """Everything that `main` needs, whole or not at all."""
    content = io.BytesIO()
    np.savez(content, train=features_ND, val=features_QD, **vars(question))
    write_atomically(path, content.getvalue())


def start(features: Path, result: Path) -> subprocess.Popen[bytes]:
    """Fit in a process that takes one core, no GPU, and gives way to all others."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = (sys.executable, "-m", "xpt.evaluation.frozen_probe")
    command = ["nice", "-n", "5", *program, str(features), str(result)]
    with result.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def main() -> None:
    features, result = map(Path, sys.argv[1:])
    with np.load(features) as stored:
        question = Question(
            findings=tuple(stored["findings"].tolist()),
            target_NC=stored["target_NC"],
            target_QC=stored["target_QC"],
            patients=stored["patients"].tolist(),
        )
        found = answer(question, stored["train"], stored["val"])
    write_atomically(result, json.dumps(without_nan(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
