"""How well, how surely and how fast the chest is found, against fixed shapes, a classical method and a peer.

    python -m benchmarks.contour [--data ../shared/cxr] [--folds FOLDER] [--json FILE]

DATA is a folder with labels.csv, films and lung masks as in `shards_tool/contour/teachers.py`. The truth is
the hull of each mask. With --folds, five models are trained as the shipped one is, each without a fifth of
the patients (about an hour of one core each; those that FOLDER has already are kept), and each film is judged
by the one that has not seen it.
The shipped weights are judged on the films that they were not trained on, turned and as negatives too, and
on phantoms of other patients.
"""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.contour_peers import LungsFinder, find_classically
from shards_tool.build import build
from shards_tool.contour import Contour, ContourFinder, contour_finder
from shards_tool.contour.finder import NetworkFinder
from shards_tool.contour.fixed import find_rect, mean_shape
from shards_tool.contour.masks import is_lung_value
from shards_tool.contour.region import Mask, hull_of, iou
from shards_tool.contour.teachers import Annotated as Film
from shards_tool.contour.teachers import annotated, fold_of
from shards_tool.film import FilmRules, Grey
from shards_tool.letterbox import full_mask
from shards_tool.phantom.render import render_film
from shards_tool.phantom.study import plan_patient
from shards_tool.reading import read_film
from shards_tool.schema import CONTOUR_CHEST, CONTOUR_LUNG
from shards_tool.settings import BuildSettings

SOURCES = ("hannover", "covidcxr")
TRAINED_ON = "hannover"
FOLDS = 5
TEACHER_STEPS = 6000
"""As in `shards_tool/contour/MODEL.md`; the network itself has `train`'s default."""
PHANTOM_SEED, PHANTOMS = 7, 40
BUILD_ROUNDS = 15
"""Other programs on the machine make single rounds differ by a quarter."""
_PATH = PurePosixPath("film.png")
_RULES = FilmRules(views="all")


@dataclass(frozen=True, kw_only=True)
class Case:
    pixels_HW: Grey
    lung_HW: Mask
    chest_HW: Mask
    """Truth, 0 or 1."""


Pair = tuple[ContourFinder, Case]


@dataclass(frozen=True, kw_only=True)
class Score:
    method: str
    films: int
    mean: float
    tenth: float
    """Percentile of the films' IoU."""
    least: float
    dice: float | None
    """Mean, of the lung fields; None for methods that find none."""
    fallbacks: int = 0


def main(
    data: Path = Path("../shared/cxr"),
    folds: Path | None = None,
    peer_python: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Print all tables.

    Args:
        folds: folder of the models of the five folds; those that are missing are trained.
        peer_python: an interpreter with lungs-finder and OpenCV 4, which it needs.
        json_file: where to write the numbers too.
    """
    cv2.setNumThreads(1)
    console = Console()
    check_oracle()
    console.print("oracle: IoU and hull agree with sets of pixels and a known hull")
    films = annotated(data, SOURCES)
    cases = {film.file: case_of(data, film) for film in films}
    unseen = [cases[film.file] for film in films if film.source != TRAINED_ON]
    every = list(cases.values())
    network = contour_finder("network")

    scores = [
        score("rectangle of the released code", [(find_rect, case) for case in every]),
        score("mean shape", [(find_mean, case) for case in every]),
        score("classical", [(find_classically, case) for case in every]),
    ]
    if peer_python is not None:
        peer = LungsFinder(peer_python)
        scores.append(score("lungs-finder", [(peer, case) for case in every]))
    scores.append(score("network, films of other sources", [(network, case) for case in unseen]))
    for turns in (1, 2, 3):
        turned = [(network, _turned(case, turns)) for case in unseen]
        scores.append(score(f"the same, turned by {90 * turns} degrees", turned))
    negatives = [(network, replace(case, pixels_HW=np.invert(case.pixels_HW))) for case in unseen]
    scores.append(score("the same, negatives", negatives))
    phantoms = [(network, case) for case in phantom_cases()]
    scores.append(score(f"network, phantoms of seed {PHANTOM_SEED}", phantoms))
    judged: list[Pair] = [(network, case) for case in unseen]
    if folds is not None:
        finders = {k: NetworkFinder(trained(data, folds, k)) for k in range(FOLDS)}
        fold = fold_of(films, FOLDS)
        judged = [(finders[fold[film.patient]], cases[film.file]) for film in films]
        scores.append(score("network, five folds by patient", judged))
    console.print(table_of(scores))

    risk = risk_coverage(judged)
    console.print(
        f"certainty: area under the risk-coverage curve {risk['area']:.4f} over {len(judged)} films "
        f"({risk['random']:.4f} for a random order, {risk['best']:.4f} for the best one)"
    )
    all_films = every_film(data, network)
    console.print(f"all films of {data}: {dict(all_films)}")
    speed = films_per_second(every, network)
    console.print(f"network: {speed:.0f} films/s on one core, without decoding")
    seconds = build_seconds(data, films)
    per_film = {name: f"{1000 * statistics.median(rounds):.1f} ms" for name, rounds in seconds.items()}
    shares = [b / a - 1 for a, b in zip(seconds["rect"], seconds["network"], strict=True)]
    low, share, high = statistics.quantiles(shares, n=4)
    console.print(
        f"build, a film: {per_film}; the network adds {share:.0%}, "
        f"in half of {len(shares)} pairs {low:.0%} to {high:.0%}"
    )
    if json_file is not None:
        content = {"scores": [vars(s) for s in scores], "risk": risk, "all": all_films, "films_per_s": speed}
        content["build_s"] = seconds
        json_file.write_text(json.dumps(content, indent=1))


def check_oracle() -> None:
    """IoU and hull against sets and a half-plane test of their own."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.random((9, 9)) < 0.5 for _ in range(2))
        pairs = [{tuple(p) for p in np.argwhere(m)} for m in (a, b)]
        assert abs(iou(a, b) - len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])) < 1e-12
        assert (hull_of(a) >= a).all()
    lung = np.zeros((40, 40), np.uint8)
    lung[10:30, 5:15] = lung[10:30, 25:35] = 1
    assert int(hull_of(lung).sum()) == 20 * 30


def case_of(data: Path, film: Film) -> Case:
    mask = cv2.imread(str(data / film.mask), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    pixels_HW = read_film((data / film.file).read_bytes(), _RULES).pixels_HW
    lung = is_lung_value(mask).astype(np.uint8)
    return Case(pixels_HW=pixels_HW, lung_HW=lung, chest_HW=hull_of(lung))


def phantom_cases() -> list[Case]:
    films = [
        render_film(plan_patient(PHANTOM_SEED, n, side=1280)[0].spec, scale=0.5) for n in range(PHANTOMS)
    ]
    # Their lungs end at the heart, the network's (and V7's) behind it: no Dice.
    return [
        Case(
            pixels_HW=film.pixels << 4,
            lung_HW=np.zeros_like(film.lung),
            chest_HW=(film.chest > 0).astype(np.uint8),
        )
        for film in films
    ]


def _turned(case: Case, turns: int) -> Case:
    pixels, lung, chest = (np.rot90(p, turns).copy() for p in (case.pixels_HW, case.lung_HW, case.chest_HW))
    return Case(pixels_HW=pixels, lung_HW=lung, chest_HW=chest)


def find_mean(pixels_HW: Grey, path: PurePosixPath) -> Contour:
    height, width = pixels_HW.shape
    return Contour(mask_hw=mean_shape(height, width), method="mean")


def score(method: str, pairs: list[Pair]) -> Score:
    ious, dices, fallbacks = [], [], 0
    for finder, case in pairs:
        contour = finder(case.pixels_HW, _PATH)
        mask_HW = full_mask(contour.mask_hw, *case.pixels_HW.shape)
        fallbacks += isinstance(finder, NetworkFinder) and contour.method != "network"
        ious.append(iou(case.chest_HW, mask_HW >= CONTOUR_CHEST))
        lung = mask_HW == CONTOUR_LUNG
        both = np.count_nonzero(lung) + np.count_nonzero(case.lung_HW)
        dices.append(2 * np.count_nonzero(lung & (case.lung_HW > 0)) / max(both, 1))
    return Score(
        method=method,
        films=len(pairs),
        mean=float(np.mean(ious)),
        tenth=float(np.quantile(ious, 0.1)),
        least=min(ious),
        dice=float(np.mean(dices)) if max(dices) > 0 else None,
        fallbacks=fallbacks,
    )


def table_of(scores: list[Score]) -> Table:
    table = Table("method", "films", "IoU, mean", "10th percentile", "least", "lung Dice", "fallbacks")
    for s in scores:
        numbers = f"{s.mean:.3f}", f"{s.tenth:.3f}", f"{s.least:.3f}"
        table.add_row(s.method, str(s.films), *numbers, f"{s.dice:.3f}" if s.dice else "", str(s.fallbacks))
    return table


def trained(data: Path, folder: Path, fold: int) -> Path:
    """The model without that fold's patients, trained now unless it is there; so is its teacher."""
    from shards_tool.contour.train import Training, train

    folder.mkdir(parents=True, exist_ok=True)
    teacher, out = folder / f"teacher-{fold}.onnx", folder / f"fold-{fold}.onnx"
    run = Training(data=data, out=out, sources=SOURCES, leave_out=fold, teacher=teacher)
    if not teacher.exists():
        train(replace(run, out=teacher, teacher=None, steps=TEACHER_STEPS))
    if not out.exists():
        train(run)
    return out


def risk_coverage(pairs: list[Pair]) -> dict[str, float]:
    """Mean error (1 - IoU) of the films that are kept, averaged over how many are kept, the surest first."""

    def area(errors: list[float]) -> float:
        return float(np.mean(np.cumsum(errors) / np.arange(1, len(errors) + 1)))

    errors = []
    for finder, case in pairs:
        contour = finder(case.pixels_HW, _PATH)
        mask_HW = full_mask(contour.mask_hw, *case.pixels_HW.shape)
        errors.append((contour.certainty or 0.0, 1 - iou(case.chest_HW, mask_HW >= CONTOUR_CHEST)))
    surest_first = [error for _, error in sorted(errors, reverse=True)]
    return {
        "area": area(surest_first),
        "random": float(np.mean(surest_first)),
        "best": area(sorted(surest_first)),
    }


def every_film(data: Path, network: ContourFinder) -> Counter[str]:
    """Methods and reasons, of every picture below the folder of images."""
    counts: Counter[str] = Counter()
    for path in sorted(path for path in (data / "images").rglob("*") if path.is_file()):
        contour = network(read_film(path.read_bytes(), _RULES).pixels_HW, _PATH)
        counts[f"{contour.method}: {contour.reason}" if contour.reason else contour.method] += 1
    return counts


def films_per_second(cases: list[Case], network: ContourFinder) -> float:
    """By process time of one core; the median of three rounds over the films."""
    rounds = []
    for _ in range(3):
        since = time.process_time()
        for case in cases:
            network(case.pixels_HW, _PATH)
        rounds.append(time.process_time() - since)
    return len(cases) / statistics.median(rounds)


def build_seconds(data: Path, films: list[Film]) -> dict[str, list[float]]:
    """Process time of a build per film, with and without the network, in turns."""
    seconds: dict[str, list[float]] = {"rect": [], "network": []}
    sources = [data / film.file for film in films if film.source == TRAINED_ON][:24]
    for _ in range(BUILD_ROUNDS):
        for contour, rounds in seconds.items():
            with tempfile.TemporaryDirectory() as out, contextlib.redirect_stderr(io.StringIO()):
                key_file = Path(out) / "key"
                key_file.write_text("0" * 64)
                since = time.process_time()
                build(
                    sources, Path(out) / "data", BuildSettings(contour=contour), key_file=key_file, workers=0
                )
                rounds.append((time.process_time() - since) / len(sources))
    return seconds


if __name__ == "__main__":
    tyro.cli(main)
