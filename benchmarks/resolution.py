"""Whether a higher resolution shows more of small nodules.

    python -m benchmarks.resolution --work FOLDER [--json FILE]

Every second of 1,200 synthetic patients has 6 to 12 nodules of 5 to 12 mm, and nothing else. Two ways to
find them, on the test films of other patients: a small ViT from random weights at 224 and at 448 pixels,
three seeds; and, because it needs no luck in training, a detector by hand at 112, 224 and 448 (differences of
Gaussians in the lungs, their upper quantiles, logistic regression). Films are cropped to the chest.
Everything lies in FOLDER: a step that is done is not done again. All on one CPU thread.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.phantom_shards import Row, shards_of
from benchmarks.recognition import CHEST, SEEDS, compare, macro, tune
from shards_tool.phantom.findings import NODULE, draw_finding
from shards_tool.phantom.study import Study, plan_patient
from shards_tool.settings import BuildSettings
from xpt.config import DataConfig
from xpt.data.index import open_shards
from xpt.data.loader import evaluation_loader
from xpt.data.samples import read_samples
from xpt.files import write_atomically

LOW, HIGH = 224, 448
MODEL = (
    *("--model.patch", "16", "--model.width", "64", "--model.depth", "2", "--model.heads", "2", *CHEST),
    *("--recognition.label_map", "free", "--recognition.findings", NODULE, "--recognition.pool", "mean"),
)
SIGMAS_MM, CHEST_MM = (2.0, 3.0, 4.0), 330.0
"""Of the Gaussians; and what the side of a cropped chest is, about."""
QUANTILES = (0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)


@dataclass(frozen=True, kw_only=True)
class Options:
    work: Path
    """Where archive, shards and runs lie."""
    json: Path | None = None
    patients: int = 1_200
    images: int = 10_000


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.work.mkdir(parents=True, exist_ok=True)
    shards = nodule_shards(options.work, options.patients)
    table, results = Table("", "AUROC"), {}
    for side in (LOW // 2, LOW, HIGH):
        results[f"by hand, {side} px"] = by_hand(shards, side)
        table.add_row(f"by hand, {side} px", f"{results[f'by hand, {side} px']:.3f}")
    runs = {
        side: [
            tune(
                options.work, f"nodules-{side}-{seed}", shards, seed, "", options.images, 1.0,
                *("--model.side", str(side), *MODEL),
            )
            for seed in SEEDS
        ]
        for side in (LOW, HIGH)
    }  # fmt: skip
    for side, found in runs.items():
        areas = [float(macro(run)(np.ones((1, len(run.keys))))[0]) for run in found]
        results[f"ViT, {side} px"] = areas
        table.add_row(f"ViT, {side} px", ", ".join(f"{area:.3f}" for area in areas))
    gain = compare(runs[HIGH], runs[LOW])
    results["ViT, gain"] = dataclasses.asdict(gain.interval) | {"p_value": gain.p_value}
    span = f"({gain.interval.low:+.3f} to {gain.interval.high:+.3f})"
    table.add_row(f"ViT, {HIGH} - {LOW} px", f"{gain.interval.value:+.3f} {span}")
    Console().print(table)
    if options.json:
        write_atomically(options.json, json.dumps(results, indent=1) + "\n")


def nodule_shards(work: Path, patients: int) -> Path:
    """One film per patient, every second with 6 to 12 nodules of 5 to 12 mm."""

    def drawn() -> tuple[list[Study], list[Row]]:
        studies, rows = [], []
        for number in range(patients):
            study = plan_patient(12, number, side=512)[0]
            rng = np.random.default_rng((12, number))
            found = tuple(
                dataclasses.replace(draw_finding(NODULE, rng), size=float(rng.uniform(5, 12)))
                for _ in range(int(rng.integers(6, 13)) if number % 2 else 0)
            )
            studies.append(dataclasses.replace(study, spec=dataclasses.replace(study.spec, findings=found)))
            rows.append(
                {"file": study.file, "patient": study.person.patient_id, f"label:{NODULE}": number % 2}
            )
        return studies, rows

    return shards_of(
        work / "nodules", drawn, BuildSettings(side=512, shard_size=32, fractions=(0.6, 0.1, 0.3))
    )


def by_hand(shards: Path, side: int) -> float:
    """AUROC of logistic regression on how strongly blobs of a nodule's size stand out in the lungs."""
    features, target = {}, {}
    for split in ("train", "test"):
        films = open_shards(shards, split)
        with evaluation_loader(
            films, DataConfig(crop_to="chest", threads=1, readers=1), side=side, patch=8, batch=16
        ) as batches:
            features[split] = [
                _blobs(image_HW.numpy().astype(np.float32), lung_L.view(side // 8, side // 8).numpy())
                for batch in batches
                for (image_HW,), lung_L, weight in zip(
                    batch.image_BCHW, batch.lung_BL, batch.weight_B, strict=True
                )
                if weight > 0
            ]
        target[split] = [labels[NODULE] for labels in read_samples(films).labels]
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    regression.fit(features["train"], target["train"])
    return float(roc_auc_score(target["test"], regression.decision_function(features["test"])))


def _blobs(image_HW: np.ndarray, lung_GG: np.ndarray) -> list[float]:
    """Upper quantiles and higher moments of differences of Gaussians in the lungs, in their own spread."""
    lung_HW = cv2.resize(lung_GG, image_HW.shape[::-1]) > 0.9
    found: list[float] = []
    for sigma_mm in SIGMAS_MM:
        sigma = sigma_mm * image_HW.shape[0] / CHEST_MM
        narrow, wide = (cv2.GaussianBlur(image_HW, (0, 0), scale * sigma) for scale in (1.0, 1.6))
        blob_HW = narrow - wide
        value_N = blob_HW[lung_HW] if lung_HW.any() else blob_HW.ravel()
        value_N = value_N / (value_N.std() + 1e-6)
        found += [*np.quantile(value_N, QUANTILES), (value_N**3).mean(), (value_N**4).mean()]
    return found


if __name__ == "__main__":
    main()
