"""What of the recipe matters: masks, ratios, resolution, decoder, pretraining at all.

    OMP_NUM_THREADS=1 python -m benchmarks.ablation --out runs/ablation [--jobs 2] [--json FILE] [--plot FILE]
    python -m benchmarks.ablation --shards SHARDS --preset vit_l_1280 --images 10000000 --out runs/ablation \
        --launch "srun python xpt/train.py --ds_config ds_configs/zero2.json"

Every arm differs from the base (the preset with `--flags`) in one thing and is trained by `xpt-train` with
each of the seeds, for as many images as the others, and where an image costs other FLOPs (`xpt.flops`) once
more for as much compute. It is judged by the probe that each run makes of its frozen features: logistic
regression on zones of the film, AUROC on validation films of other patients. `pretrained: no` is the probe of
the base's weights before their first step.

Without `--shards` the films are phantoms with large findings, drawn once, and the base is a small model that
looks at their chests at 64 pixels. A run that is there is not repeated, so the same command goes on.
Intervals are over patients (2,000 bootstrap draws, all arms and seeds on the same patients).
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.forest import Bar, forest
from benchmarks.phantom_shards import large_findings_shards
from xpt.command_line import parse
from xpt.config import Config
from xpt.data.index import open_shards
from xpt.data.labels import check_disjoint
from xpt.data.samples import read_samples
from xpt.files import write_atomically
from xpt.flops import work
from xpt.metrics import auroc_draws, interval

SAME = 0.02
"""Arms whose FLOPs per image differ by less than this share are not trained for equal compute."""
BASE, UNTRAINED = "base", "pretrained: no"
SMALL = (
    *("--model.side", "64", "--model.patch", "8", "--model.width", "96", "--model.depth", "4"),
    *("--model.heads", "3", "--model.decoder_width", "96", "--model.decoder_depth", "2"),
    *("--model.decoder_heads", "3", "--data.crop_to", "chest"),
    *("--train.batch", "16", "--train.micro_batch", "16", "--train.base_lr", "0.024"),
    *("--train.log_images", "3200", "--train.eval_films", "256"),
)
"""The base on phantoms: 0.7 M parameters, 64 tokens; 300 images/s on one core. With batches of 32 it
learns less from as many images."""


@dataclass(frozen=True, kw_only=True)
class Options:
    out: Path = Path("runs/ablation")
    """Folder of one run folder per arm and seed, and of the phantoms."""
    shards: Path | None = None
    """Data set with labels; None: phantoms."""
    preset: str = "demo"
    flags: str = ""
    """Flags of xpt-train that all runs share, as `--flags="--model.side 64"`; empty: for phantoms `SMALL`."""
    images: int = 48_000
    """Of the base, and of every arm at equal images."""
    seeds: int = 3
    arms: tuple[str, ...] = ()
    """Names of arms to train; none: all."""
    launch: str = f"{sys.executable} xpt/train.py"
    """What starts a training run; flags are added to it."""
    jobs: int = 1
    """Runs at a time."""
    patients: int = 6_000
    """Phantoms: a third of them for validation."""
    probe_films: int = 2048
    """Films of each split that the probe takes, the first ones."""
    json: Path | None = None
    """File to write the table to."""
    plot: Path | None = None
    """SVG file to draw the intervals in."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    flags: tuple[str, ...]
    config: Config
    images: int


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    options.out.mkdir(parents=True, exist_ok=True)
    shards = options.shards or large_findings_shards(
        options.out, patients=options.patients, side=160, fractions=(2 / 3, 1 / 3, 0.0)
    )
    check_disjoint({split: read_samples(open_shards(shards, split)).patients for split in ("train", "val")})
    console = Console()
    console.print("oracle: no patient is in both splits: green")
    arms = [arm for arm in arms_of(options) if not options.arms or arm.name in options.arms]
    # Seed after seed, so that an unfinished series still compares arms.
    todo = [(arm, seed) for seed in range(options.seeds) for arm in arms]
    with ThreadPoolExecutor(options.jobs) as pool:
        for finished in pool.map(lambda pair: _train(options, shards, *pair), todo):
            assert finished
    rows = table_of(options, arms)
    _print(console, rows)
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=1) + "\n")
    if options.plot:
        bars = [Bar(name=row["arm"], **_ends(row["difference"])) for row in rows if row["arm"] != BASE]
        write_atomically(options.plot, forest("AUROC of frozen features, minus the base's", bars))


def arms_of(options: Options) -> list[Arm]:
    """The base, what differs from it in one thing, and at equal compute where that differs."""
    base = parse(["--preset", options.preset, *_flags(options)])
    other = {"self": "cross", "cross": "self"}[base.model.decoder]
    inside, outside = base.mask.keep_inside, base.mask.keep_outside
    changes: dict[str, dict[str, dict[str, Any]]] = {
        BASE: {},
        "masks: rectangle": {"mask": {"strategy": "rect"}},
        "masks: random": {"mask": {"strategy": "random"}},
        "masks: more outside": {"mask": {"keep_inside": outside, "keep_outside": inside}},
        "ratio: 0.60": {"mask": {"ratio": 0.60}},
        "ratio: 0.90": {"mask": {"ratio": 0.90}},
        "resolution: half": {"model": {"side": base.model.side // 2}},
        f"decoder: {other}": {"model": {"decoder": other}},
    }
    batch, arms = base.train.batch, []
    images = batch * -(-options.images // batch)
    for name, change in changes.items():
        config = base
        for section, fields in change.items():
            config = replace(config, **{section: replace(getattr(config, section), **fields)})
        flags = tuple(
            word
            for section, fields in change.items()
            for field, value in fields.items()
            for word in (f"--{section}.{field}", str(value))
        )
        arms.append(Arm(name=name, flags=flags, config=config, images=images))
        cost = work(config).training / work(base).training
        if abs(cost - 1) > SAME:
            equal = batch * max(1, round(images / cost / batch))
            arms.append(Arm(name=f"{name}, equal compute", flags=flags, config=config, images=equal))
    return arms


def _flags(options: Options) -> list[str]:
    if options.flags or options.shards:
        return shlex.split(options.flags)
    return list(SMALL)


def _train(options: Options, shards: Path, arm: Arm, seed: int) -> bool:
    """One run, or the rest of one; probed before its first step and after its last."""
    run = _run(options, arm, seed)
    if _probe(run, last=True) is not None:
        return True
    flags = {
        "--data.path": shards,
        "--run_dir": run,
        "--train.seed": seed,
        "--train.images": arm.images,
        "--train.eval_images": arm.images,
        "--train.warmup_images": arm.images // 20,
        "--train.probe_films": options.probe_films,
    }
    command = [
        *shlex.split(options.launch),
        *("--preset", options.preset, *_flags(options)),
        *(str(word) for pair in flags.items() for word in pair),
        *arm.flags,
    ]
    with Path(f"{run}.log").open("ab") as log:
        status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if status or _probe(run, last=True) is None:
        raise SystemExit(f"{' '.join(command)}\nended with status {status}; see {run}.log")
    return True


def table_of(options: Options, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """One row per arm that has runs: mean macro AUROC over its seeds, and that minus the base's."""
    probes = {
        arm.name: [_probe(_run(options, arm, seed), last=True) for seed in range(options.seeds)]
        for arm in arms
    }
    first = [
        _probe(_run(options, arm, seed), last=False) for arm in arms[:1] for seed in range(options.seeds)
    ]
    probes[UNTRAINED] = first
    base = _statistic(probes[BASE])
    patients = probes[BASE][0]["val"]["patients"]
    cost = {arm.name: arm.images * work(arm.config).training for arm in arms}
    images = {arm.name: arm.images for arm in arms}
    rows = []
    for name, found in probes.items():
        ours = _statistic(found)
        rows.append(
            {
                "arm": name,
                "images": images.get(name, 0),
                "pflop": cost.get(name, 0) / 1e15,
                "seeds": [probe["mean"]["logistic"]["value"] for probe in found],
                "auroc": asdict(interval(ours, patients)),
                "difference": asdict(interval(lambda w, a=ours: a(w) - base(w), patients)),
            }
        )
    return rows


def _statistic(probes: Sequence[dict[str, Any]]) -> Callable[[np.ndarray], np.ndarray]:
    """Mean AUROC over runs and findings, of film weights [R, N]."""
    target_NC = np.array(probes[0]["val"]["target"], dtype=float)
    logits = [np.array(probe["val"]["logit"]) for probe in probes]
    assert all(probe["val"]["patients"] == probes[0]["val"]["patients"] for probe in probes)

    def statistic(weight_RN: np.ndarray) -> np.ndarray:
        values = []
        for logit_NC in logits:
            for target_N, logit_N in zip(target_NC.T, logit_NC.T, strict=True):
                known_N = ~np.isnan(target_N)
                values.append(auroc_draws(target_N[known_N] > 0.5, logit_N[known_N], weight_RN[:, known_N]))
        return np.mean(values, axis=0)

    return statistic


def _run(options: Options, arm: Arm, seed: int) -> Path:
    name = arm.name.replace(": ", "-").replace(", ", "-").replace(" ", "-")
    return (options.out / f"{name}-{seed}").absolute()


def _probe(run: Path, *, last: bool) -> Any:  # noqa: ANN401  what JSON holds
    """The result of the probe before the first step, or after the last; None where it is not there yet."""
    found = sorted((run / "evidence").glob("probe-*.json"))
    if len(found) < 2:
        return None
    return json.loads(found[-1 if last else 0].read_text())


def _print(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    table = Table("arm", "images", "PFLOP", "macro AUROC (seeds)", "95%", "minus the base")
    for row in rows:
        found, gap = row["auroc"], row["difference"]
        table.add_row(
            row["arm"],
            f"{row['images']:,}",
            f"{row['pflop']:.3g}",
            f"{found['value']:.3f} (" + " ".join(f"{x:.3f}" for x in row["seeds"]) + ")",
            f"{found['low']:.3f} to {found['high']:.3f}",
            "" if row["arm"] == BASE else f"{gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})",
        )
    console.print(table)


def _ends(gap: dict[str, Any]) -> dict[str, float]:
    return {name: gap[name] for name in ("value", "low", "high")}


if __name__ == "__main__":
    main()
