"""Do the cheap decoder and the contour masks learn as much? Frozen features of small models on phantoms.

    OMP_NUM_THREADS=1 python -m benchmarks.ablation [--out runs/ablation] [--runs 1] [--json FILE]

One model per arm and seed is trained from nothing on the phantoms of the training patients; then a logistic
regression on the encoder's tokens, all patches visible and averaged in 4 x 4 zones of the film, tells the
findings of other patients' films.
Each run leaves one file in `--out`, so that an interrupted series goes on, and `--runs N` makes N at most.
`cross, equal time` repeats the cross decoder with as many images as fit into the time of `self` of its seed.

Intervals are over patients (2,000 bootstrap draws, all arms and seeds on the same patients).
"""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from kernels import mask_and_gather, rect_contour
from shards_tool.letterbox import letterbox
from shards_tool.phantom import render_film
from shards_tool.phantom.archive import labels_of
from shards_tool.phantom.findings import LABELS
from shards_tool.phantom.study import plan_patient
from xpt.config import Config, demo
from xpt.files import write_atomically
from xpt.metrics import Interval, auroc_draws, interval
from xpt.models.encoder import Encoder
from xpt.models.mae import MAE, PIXEL_MEAN, PIXEL_STD
from xpt.probe import fit_logistic
from xpt.schedule import learning_rate, parameter_groups

SCALE, PHANTOM_SIDE = 0.17, 1440
"""Rendered a little larger than the 224 pixels they are shrunk to."""
ZONES = 4
PROBE_L2 = 100.0
ARMS: dict[str, dict[str, str]] = {
    "self, contour": {},
    "cross, contour": {"decoder": "cross"},
    "self, rect": {"strategy": "rect"},
    "self, random": {"strategy": "random"},
    "cross, equal time": {"decoder": "cross"},
    "untrained": {},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    out: Path = Path("runs/ablation")
    """Folder of the phantoms and of one JSON file per run."""
    images: int = 6_000
    """Seen in a run."""
    patients: int = 600
    """For training; the probe learns from them too."""
    test_patients: int = 300
    seeds: int = 3
    runs: int | None = None
    """Make so many of the missing runs at most; None: all."""
    json: Path | None = None
    """File to write the table to."""


@dataclass(frozen=True, kw_only=True)
class Films:
    """N films of one split in memory."""

    image_NCHW: Tensor
    chest_NL: Tensor
    is_valid_NL: Tensor
    target_NC: Tensor
    patients: list[str]


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    train = _films(options, "train", range(options.patients))
    test = _films(options, "test", range(options.patients, options.patients + options.test_patients))
    assert not set(train.patients) & set(test.patients)
    missing = [key for key in _keys(options) if not _path(options, *key).exists()]
    for arm, seed in missing[: options.runs]:
        result = _run(options, arm, seed, train, test)
        write_atomically(_path(options, arm, seed), json.dumps(result))
    _report(options, test)


# Films


def _films(options: Options, split: str, numbers: range) -> Films:
    path = options.out / f"{split}-{len(numbers)}.npz"
    if not path.exists():
        made = [_draw(study.spec) for n in numbers for study in plan_patient(7, n, side=PHANTOM_SIDE)]
        labels = [labels_of(s) for n in numbers for s in plan_patient(7, n, side=PHANTOM_SIDE)]
        patients = [str(n) for n in numbers for _ in plan_patient(7, n, side=PHANTOM_SIDE)]
        image, chest, is_valid = (np.stack(part) for part in zip(*made, strict=True))
        target = np.array([[label in found for label in LABELS] for found in labels], np.float32)
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, image=image, chest=chest, is_valid=is_valid, target=target, patients=patients)
        path.with_suffix(".tmp").rename(path)
    with np.load(path) as stored:
        return Films(
            image_NCHW=torch.from_numpy(stored["image"])[:, None],
            chest_NL=torch.from_numpy(stored["chest"]),
            is_valid_NL=torch.from_numpy(stored["is_valid"]),
            target_NC=torch.from_numpy(stored["target"]),
            patients=stored["patients"].tolist(),
        )


def _draw(spec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: ANN001
    """(image [S, S] uint8, share of each patch in the chest [L], whether it shows film at all [L])."""
    model = demo().model
    film = render_film(spec, scale=SCALE)
    image, box = letterbox((film.pixels >> 4).astype(np.uint8), model.side)
    chest, _ = letterbox(film.chest, model.side)
    shown = np.zeros_like(image)
    shown[box.top : box.bottom, box.left : box.right] = 1
    grid = (model.grid, model.grid)
    share = cv2.resize(chest.astype(np.float32) / 255, grid, interpolation=cv2.INTER_AREA)
    is_valid = cv2.resize(shown.astype(np.float32), grid, interpolation=cv2.INTER_AREA) > 0
    return image, share.clip(0, 1).ravel(), is_valid.ravel()


# One run


def _run(options: Options, arm: str, seed: int, train: Films, test: Films) -> dict[str, object]:
    images = options.images
    if arm == "untrained":
        images = 0
    elif arm == "cross, equal time":
        images = _equal_time(options, seed)
    config = _config(arm, images or options.images, seed)
    torch.manual_seed(seed)
    model = MAE(config)
    started = time.process_time()
    losses = _train(model, config, train, images)
    seconds = time.process_time() - started
    probe = fit_logistic(_features(model.encoder, train), train.target_NC, l2=PROBE_L2)
    logits_NC = probe.logits(_features(model.encoder, test))
    return {
        "arm": arm,
        "seed": seed,
        "images": images,
        "seconds": seconds,
        "loss": float(np.mean(losses[-50:])) if losses else None,
        "settings": dataclasses.asdict(config),
        "logits": [[round(x, 4) for x in row] for row in logits_NC.tolist()],
    }


def _config(arm: str, images: int, seed: int) -> Config:
    """The demo's model and rates."""
    base, change = demo(), ARMS[arm]
    return dataclasses.replace(
        base,
        mask=dataclasses.replace(base.mask, strategy=change.get("strategy", "contour")),  # pyright: ignore
        model=dataclasses.replace(base.model, decoder=change.get("decoder", "self")),  # pyright: ignore
        train=dataclasses.replace(base.train, images=images, seed=seed),
    )


def _train(model: MAE, config: Config, films: Films, images: int) -> list[float]:
    """The loop of `xpt.train` without its machinery: whole frames, a new permutation per epoch."""
    settings = config.train
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), betas=settings.betas)
    rect_L = rect_contour(config.model.grid)
    order = np.random.default_rng(settings.seed)
    rows = np.concatenate(
        [order.permutation(len(films.patients)) for _ in range(1 + images // len(films.patients))]
    )
    losses = []
    for start in range(0, images, settings.batch):
        row_B = torch.from_numpy(rows[start : start + settings.batch])
        chest_BL = films.chest_NL[row_B]
        region_BL = {
            "contour": chest_BL,
            "rect": rect_L.expand_as(chest_BL),
            "random": torch.zeros_like(chest_BL),
        }[config.mask.strategy]
        place_B = torch.arange(start, start + len(row_B))
        loss = model(
            films.image_NCHW[row_B], region_BL, films.is_valid_NL[row_B], place_B, settings.seed
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(start, settings)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def _features(encoder: Encoder, films: Films) -> Tensor:
    """[N, ZONES * ZONES * D]: mean patch token of each zone, all patches visible."""
    model = demo().model
    parts = []
    for image_BCHW, valid_BL in zip(films.image_NCHW.split(64), films.is_valid_NL.split(64), strict=True):
        every = mask_and_gather(
            image_BCHW,
            torch.zeros(valid_BL.shape),
            valid_BL,
            torch.arange(len(valid_BL)),
            seed=0,
            keep=model.tokens,
            predict=0,
            patch=model.patch,
            keep_inside=1,
            keep_outside=1,
            mean=PIXEL_MEAN,
            std=PIXEL_STD,
        )
        tokens_BLD = encoder(every.patches_BKP, every.visible_BK)[:, 1:]
        tokens_BDGG = tokens_BLD.transpose(1, 2).unflatten(2, (model.grid, model.grid))
        parts.append(F.adaptive_avg_pool2d(tokens_BDGG, ZONES).flatten(1))
    return torch.cat(parts)


def _equal_time(options: Options, seed: int) -> int:
    """Images of the cross decoder in the process time that `self` took."""
    ours, theirs = (
        json.loads(_path(options, arm, seed).read_text())["seconds"]
        for arm in ("cross, contour", "self, contour")
    )
    return round(options.images * theirs / ours)


# The table


def _report(options: Options, test: Films) -> None:
    runs: dict[str, list[dict]] = {
        arm: [
            json.loads(_path(options, arm, seed).read_text())
            for seed in range(options.seeds)
            if _path(options, arm, seed).exists()
        ]
        for arm in ARMS
    }
    target_NC = test.target_NC.numpy() > 0.5
    console = Console()
    table = Table("arm", "runs", "images", "s of CPU", "loss", "macro AUROC", "95%", "minus `self, contour`")
    rows = []
    for arm, made in runs.items():
        if not made:
            continue
        statistic = _macro_auroc(made, target_NC)
        found = interval(statistic, test.patients)
        base = _macro_auroc(runs["self, contour"], target_NC)
        gap = interval(lambda w, a=statistic, b=base: a(w) - b(w), test.patients)
        per_seed = [float(_macro_auroc([run], target_NC)(np.ones((1, len(target_NC))))[0]) for run in made]
        rows.append(
            {
                "arm": arm,
                "runs": len(made),
                "images": int(np.mean([run["images"] for run in made])),
                "seconds": float(np.mean([run["seconds"] for run in made])),
                "auroc": vars(found),
                "seeds": per_seed,
                "difference": vars(gap),
            }
        )
        losses = [run["loss"] for run in made if run["loss"] is not None]
        table.add_row(
            arm,
            str(len(made)),
            f"{rows[-1]['images']:,}",
            f"{rows[-1]['seconds']:.0f}",
            f"{np.mean(losses):.3f}" if losses else "",
            f"{found.value:.3f} (" + " ".join(f"{x:.3f}" for x in per_seed) + ")",
            f"{found.low:.3f} to {found.high:.3f}",
            "" if arm == "self, contour" else _signed(gap),
        )
    films = f"{len(target_NC):,} test films of {options.test_patients} patients"
    console.print(f"oracle: patients of the test films are none of training's; {films}")
    console.print(table)
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=1) + "\n")


def _macro_auroc(made: list[dict], target_NC: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Mean over runs and labels, of film weights [R, N]."""
    logits = [np.array(run["logits"]) for run in made]

    def statistic(weight_RN: np.ndarray) -> np.ndarray:
        values = [
            auroc_draws(target_NC[:, c], logits_NC[:, c], weight_RN)
            for logits_NC in logits
            for c in range(target_NC.shape[1])
        ]
        return np.mean(values, axis=0)

    return statistic


def _signed(gap: Interval) -> str:
    return f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def _keys(options: Options) -> list[tuple[str, int]]:
    """Seed after seed, so that an unfinished series still compares arms."""
    return [(arm, seed) for seed in range(options.seeds) for arm in ARMS]


def _path(options: Options, arm: str, seed: int) -> Path:
    return options.out / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}.json"


if __name__ == "__main__":
    main()
