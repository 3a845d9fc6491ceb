"""Films whose lungs are known for `shards_tool/contour/train.py`: from annotators, from a network that has
learned from those, and phantoms.
"""

import csv
import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from shards_tool.contour.augment import Picture, Teacher
from shards_tool.contour.masks import is_lung_value
from shards_tool.contour.segmenter import Map, Segmenter
from shards_tool.contour.trust import doubt_about, regions_of
from shards_tool.phantom.findings import CONSOLIDATION, EFFUSION, Finding
from shards_tool.phantom.render import FilmSpec, render_film
from shards_tool.phantom.study import plan_patient
from shards_tool.picture import read_picture

KEPT_SIDE = 288
"""Longest side in pixels that films are kept at: a little more than the network sees."""
PHANTOM_SEED = 40_000
"""Of the patients that are seen in training; any other seed gives patients that are not."""
_SCALE = KEPT_SIDE / 1280
_SURE = 0.85
"""Least certainty of a film that a network marks for another."""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A row of `labels.csv` whose film has a mask."""

    file: str
    mask: str
    source: str
    patient: str


def annotated(data: Path, sources: tuple[str, ...]) -> list[Annotated]:
    """The films below `data` that have masks, in the table's order.

    Args:
        data: a folder with `labels.csv` (columns file, mask, source, patient) and the files that it names.
    """
    names = [field.name for field in dataclasses.fields(Annotated)]
    return [
        Annotated(**{n: r[n] for n in names}) for r in _rows(data) if r["mask"] and r["source"] in sources
    ]


def _rows(data: Path) -> list[dict[str, str]]:
    with (data / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fold_of(films: list[Annotated], folds: int) -> dict[str, int]:
    """A fold for each patient, so that films spread evenly: the patients with most films first."""
    count: dict[str, int] = {}
    for film in films:
        count[film.patient] = count.get(film.patient, 0) + 1
    filled, fold = [0] * folds, {}
    for patient in sorted(count, key=lambda name: (-count[name], name)):
        fold[patient] = filled.index(min(filled))
        filled[fold[patient]] += count[patient]
    return fold


def load_teacher(data: Path, film: Annotated) -> Teacher:
    grey_HW = read_picture((data / film.file).read_bytes()).pixels_HW
    mask_HW = cv2.imread(str(data / film.mask), cv2.IMREAD_GRAYSCALE)
    if mask_HW is None:
        raise ValueError(f"{data / film.mask} is not a readable PNG")
    return _teacher(grey_HW, is_lung_value(mask_HW), is_phantom=False)


def marked_by(segmenter: Segmenter, data: Path, sources: tuple[str, ...]) -> Iterator[Teacher]:
    """The upright frontal films of `sources` without masks, with the lungs that a network finds in them.

    It looks at each in two sizes, three attitudes and in a mirror, and the mean counts; films that leave it
    in doubt are left out. A network that learns its teacher's means on distorted films exceeds the teacher
    (noisy student, arXiv 1911.04252).
    """
    for row in _rows(data):
        is_frontal = row["view"] in ("PA", "AP", "AP Supine") and row["orientation"] == "upright"
        if row["source"] not in sources or row["mask"] or not is_frontal:
            continue
        grey_HW = read_picture((data / row["file"]).read_bytes()).pixels_HW
        canvas, box = segmenter.canvas_of(grey_HW)
        content = np.s_[box.top : box.bottom, box.left : box.right]
        regions = regions_of(_mean_lung(segmenter, canvas)[content], None)
        if regions.lobes == 2 and not doubt_about(regions) and regions.certainty >= _SURE:
            height, width = grey_HW.shape
            lung_HW = cv2.resize(regions.lung, (width, height), interpolation=cv2.INTER_LINEAR)
            yield _teacher(grey_HW, lung_HW > 0, is_phantom=False)


def _mean_lung(segmenter: Segmenter, canvas: Map) -> Map:
    side = segmenter.side
    views = []
    for zoom, degrees, mirror in itertools.product((0.88, 1.0), (-5, 0, 5), (1, -1)):
        matrix = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), degrees, zoom)
        view = cv2.warpAffine(canvas, matrix, (side, side))[:, ::mirror].astype(np.float32)
        lung = np.ascontiguousarray(segmenter(view).lung[:, ::mirror])
        views.append(
            cv2.warpAffine(lung, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        )
    return np.mean(views, axis=0)


def phantom_teachers(patients: int) -> Iterator[Teacher]:
    """Every study of so many patients; in half of them, fluid and airless bases are added on both sides."""
    for number in range(patients):
        for study in plan_patient(PHANTOM_SEED, number, side=1280):
            rng = np.random.default_rng((PHANTOM_SEED, number, study.spec.pose.noise_seed))
            spec = _with_opaque_bases(study.spec, rng) if rng.random() < 0.5 else study.spec
            film = render_film(spec, scale=_SCALE)
            yield _teacher(film.pixels, film.lung > 0, is_phantom=True)


def _with_opaque_bases(spec: FilmSpec, rng: np.random.Generator) -> FilmSpec:
    kept = tuple(finding for finding in spec.findings if finding.side == 0)
    added = []
    for side in (-1, 1):
        if rng.random() < 0.6:
            added.append(Finding(name=EFFUSION, side=side, zone="", size=float(rng.uniform(0.1, 1))))
        if rng.random() < 0.4:
            place, down = float(rng.uniform(0.58, 0.8)), float(rng.uniform(0.71, 0.86))
            size = float(rng.uniform(0.5, 1))
            added.append(
                Finding(name=CONSOLIDATION, side=side, zone="lower", size=size, across=place, down=down)
            )
    return dataclasses.replace(spec, findings=kept + tuple(added))


def _teacher(grey_HW: Picture, is_lung: Picture, *, is_phantom: bool) -> Teacher:
    height, width = grey_HW.shape
    scale = KEPT_SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    small = cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    low, high = np.percentile(small, (0.5, 99.5))
    share = cv2.resize(is_lung.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return Teacher(
        grey_HW=np.clip((small - low) / max(high - low, 1), 0, 1),
        lung_HW=(share > 0.5).astype(np.uint8),
        is_phantom=is_phantom,
    )
