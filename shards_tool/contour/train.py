"""Train the contour network and export it: `python -m shards_tool.contour.train DATA --out FILE.onnx`.

DATA is a folder with `labels.csv` (file, mask, source, patient), the films and their lung masks. The command
in `MODEL.md` makes the shipped weights, on one thread, with fixed seeds: the same bits on the same kind of
processor with the same PyTorch. With `model.py` the only part of the shard tool that imports torch.
"""

import copy
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import tyro
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from shards_tool.contour.augment import Sample, Teacher, draw_sample
from shards_tool.contour.model import MAP_SCALE, POSES, SIDE, ContourNet, Exported
from shards_tool.contour.segmenter import Segmenter
from shards_tool.contour.teachers import annotated, fold_of, load_teacher, marked_by, phantom_teachers

log = logging.getLogger(__name__)

FOLDS = 5
_REAL_SHARE = 0.75
"""Of the samples; the rest are phantoms."""
_EMA = 0.995
_NO_POSE = -1
_LARGE = 1000
"""Weights of a layer."""
_SMALL_SIDE, _SMALL_SHARE = 192, 0.55
"""The first steps are taken on smaller films, at half the cost."""
_EDGE_WEIGHT = 4.0
"""How much more a pixel counts at the edge of a region, which is all that is hard, than far from it."""


@dataclass(frozen=True, kw_only=True)
class Training:
    data: tyro.conf.Positional[Path]
    out: Path
    """ONNX file to write."""
    sources: tuple[str, ...] = ("hannover",)
    """Whose films are learned from."""
    leave_out: int | None = None
    """A fold, 0 to 4, of the patients of all `sources` that is left out."""
    teacher: Path | None = None
    """A network that this program has made, which marks the lungs of the films of `unmarked`."""
    unmarked: tuple[str, ...] = ("nih", "kermany")
    """Sources of more films, which have no masks; only with a `teacher`."""
    steps: int = 12_000
    batch: int = 8
    rate: float = 3e-3
    """Highest learning rate."""
    phantoms: int = 150
    """Patients; each has two studies on average."""
    seed: int = 0


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(tyro.cli(Training, description=__doc__))


def train(run: Training) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    torch.use_deterministic_algorithms(True)
    films = annotated(run.data, run.sources)
    fold = fold_of(films, FOLDS)
    real = [load_teacher(run.data, film) for film in films if fold[film.patient] != run.leave_out]
    annotators = len(real)
    if run.teacher is not None:
        real += marked_by(Segmenter(run.teacher), run.data, run.unmarked)
    phantoms = list(phantom_teachers(run.phantoms))
    log.info(
        "%d films marked by annotators, %d by a network, %d phantoms",
        annotators,
        len(real) - annotators,
        len(phantoms),
    )

    net = ContourNet().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=run.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.rate, run.steps, pct_start=0.1)
    mean, since = 0.0, time.process_time()
    for step in range(run.steps):
        side = _SMALL_SIDE if step < _SMALL_SHARE * run.steps else SIDE
        samples = [
            _drawn(real, phantoms, np.random.default_rng((run.seed, step, i)), side) for i in range(run.batch)
        ]
        loss = loss_of(net, samples)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _follow(average, net, min(_EMA, (step + 1) / (step + 10)))
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            log.info("step %d loss %.4f, %.0f s of CPU", step + 1, mean, time.process_time() - since)
    export(average, run.out)


def _drawn(real: list[Teacher], phantoms: list[Teacher], rng: np.random.Generator, side: int) -> Sample:
    teachers = real if rng.random() < _REAL_SHARE or not phantoms else phantoms
    return draw_sample(teachers[rng.integers(len(teachers))], rng, side)


def loss_of(net: ContourNet, samples: list[Sample]) -> Tensor:
    """Cross-entropy and soft Dice of both regions, and cross-entropy of the pose where there is a chest."""
    film = torch.from_numpy(np.stack([s.film_SS for s in samples]))[:, None]
    truth = torch.from_numpy(np.stack([[s.lung_SS, s.chest_SS] for s in samples]))
    matters = torch.from_numpy(np.stack([[s.matters_SS, np.ones_like(s.matters_SS)] for s in samples]))
    truth, matters = F.avg_pool2d(truth, MAP_SCALE), F.avg_pool2d(matters, MAP_SCALE)
    turn = torch.tensor([s.turn for s in samples])
    is_negative = torch.tensor([float(s.is_negative) for s in samples])

    logits, pose = net(film.contiguous(memory_format=torch.channels_last))
    edge = (F.avg_pool2d(truth, 5, 1, 2, count_include_pad=False) - truth).abs()
    weight = matters * (1 + _EDGE_WEIGHT * edge.clamp(max=0.5) * 2)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    found = torch.sigmoid(logits) * matters
    both = (found * truth).sum((2, 3))
    dice = (2 * both + 1) / (found.sum((2, 3)) + (truth * matters).sum((2, 3)) + 1)
    loss = (entropy * weight).sum() / weight.sum() + 0.5 * (1 - dice).mean()
    has_chest = turn != _NO_POSE
    if has_chest.any():
        loss = loss + 0.1 * F.cross_entropy(pose[:, : POSES - 1], turn, ignore_index=_NO_POSE)
        negative = pose[has_chest, POSES - 1]
        loss = loss + 0.1 * F.binary_cross_entropy_with_logits(negative, is_negative[has_chest])
    return loss


@torch.no_grad()
def _follow(average: ContourNet, net: ContourNet, keep: float) -> None:
    for kept, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1 - keep)
        else:
            kept.copy_(new)


def export(net: ContourNet, out: Path) -> None:
    """One film or several: `film` to `lung`, `chest` and `pose`."""
    model = Exported(net.to(memory_format=torch.contiguous_format)).eval()  # pyright: ignore[reportCallIssue]
    film = torch.rand(2, 1, SIDE, SIDE)
    part = out.with_name(out.name + ".part")
    torch.onnx.export(
        model,
        (film,),
        str(part),
        input_names=["film"],
        output_names=["lung", "chest", "pose"],
        dynamic_shapes=({0: torch.export.Dim("films")},),
        external_data=False,
        verbose=False,
    )
    _slim(part)
    part.replace(out)


def _slim(path: Path) -> None:
    """Keep large weights in 16 bits, which is half the file; onnxruntime widens them once, when it loads.

    The exporter's notes on where in which file each node comes from go: they differ between machines.
    """
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size >= _LARGE:
            wide = weight.name
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{wide}.half"))
            casts.append(onnx.helper.make_node("Cast", [weight.name], [wide], to=onnx.TensorProto.FLOAT))
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
