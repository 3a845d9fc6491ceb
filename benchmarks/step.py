"""The whole training step at 1280 pixels beside Hugging Face's ViTMAE, and how it grows with the side.

    OMP_NUM_THREADS=1 python -m benchmarks.step [--rounds 3] [--json FILE]

Forward and backward of ViT-L (24 blocks of 1,024; decoder 8 of 512) on one image, one channel, fp32, one
thread. ViTMAE runs through scaled_dot_product_attention, its fastest attention on a CPU, from a float image;
ours from the uint8 image. Every variant is a process of its own, so that its peak memory is its own, and
variants take turns. Times are process times, medians over rounds, without the optimizer, which is the same.

Oracle, before anything is timed: with ViTMAE's weights, the `self` decoder gives its loss and its gradients.
"""

import dataclasses
import json
import math
import multiprocessing
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.vitmae import image_and_mask, largest_difference, vitmae
from xpt.config import Config, MaskConfig, ModelConfig, Recompute
from xpt.models.mae import MAE

BASE = ("vitmae", 16)
VARIANTS: tuple[tuple[str, str, int, str, Recompute], ...] = (
    ("ViTMAE", "vitmae", 16, "", "none"),
    ("ViTMAE", "vitmae", 4, "", "none"),
    ("self", "self", 16, "", "none"),
    ("self", "self", 16, ", elementwise recomputed", "elementwise"),
    ("cross 25%", "cross", 4, "", "none"),
    ("cross 25%", "cross", 4, ", elementwise recomputed", "elementwise"),
)
"""Name, kind, decoder heads, the rest of the name, what is recomputed in the backward pass."""
TOLERANCE = 2e-5
"""Relative, of fp32 sums in another order."""


@dataclass(frozen=True, kw_only=True)
class Options:
    rounds: int = 3
    """Of each variant at 1280 pixels."""
    side: int = 1280
    depth: int = 24
    """Encoder blocks; the decoder has a third of them."""
    ratios: tuple[float, ...] = (0.75, 0.90)
    """Shares of the patches that are masked, in the table of whole steps."""
    sides: tuple[int, ...] = (224, 448, 896, 1280)
    """Of the growth table."""
    only: str = ""
    """A kind of variants that is measured alone, beside ViTMAE; empty: all."""
    json: Path | None = None
    """File to write the results to."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    name: str
    ratio: float
    side: int
    depth: int
    kind: str
    """"vitmae", "self" or "cross"."""
    heads: int
    """Of the decoder."""
    recompute: Recompute = "none"

    def config(self) -> Config:
        model = ModelConfig(
            side=self.side,
            depth=self.depth,
            decoder_depth=max(1, self.depth // 3),
            decoder="cross" if self.kind == "cross" else "self",
            decoder_heads=self.heads,
            activation_checkpointing=self.recompute,
        )
        return Config(mask=MaskConfig(strategy="random", ratio=self.ratio), model=model)


@dataclass(frozen=True, kw_only=True)
class Cost:
    seconds: float
    """Process time of forward and backward."""
    peak_gb: float
    """Resident memory at its highest, the process's own start taken off."""


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, description=__doc__)
    console = Console()
    worst = largest_difference()
    assert worst < TOLERANCE, (
        f"loss or gradients differ from ViTMAE's by {worst:.1e}, wanted below {TOLERANCE}"
    )
    console.print(f"oracle: loss and gradients equal ViTMAE's (largest relative difference {worst:.1e})")
    results = {"step": _steps(options, console), "growth": _growth(options, console)}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _steps(options: Options, console: Console) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for ratio in options.ratios:
        variants = [
            Variant(
                name=f"{name}, decoder heads {heads} x {512 // heads}{rest}",
                ratio=ratio,
                side=options.side,
                depth=options.depth,
                kind=kind,
                heads=heads,
                recompute=recompute,
            )
            for name, kind, heads, rest, recompute in VARIANTS
            if options.only in ("", kind) or (kind, heads) == BASE
        ]
        costs = _in_turns(variants, options.rounds)
        table = Table(f"{ratio:.0%} masked", "step", "images/s", "peak", "against ViTMAE", "memory")
        base = _median(costs[variants[0]])
        for variant in variants:
            cost = _median(costs[variant])
            table.add_row(
                variant.name,
                f"{cost.seconds:.1f} s",
                f"{1 / cost.seconds:.3f}",
                f"{cost.peak_gb:.2f} GB",
                f"{base.seconds / cost.seconds:.2f} x",
                f"{cost.peak_gb / base.peak_gb:.2f}",
            )
            rows.append(vars(variant) | {"costs": [vars(cost) for cost in costs[variant]]})
        console.print(table)
    return rows


def _growth(options: Options, console: Console) -> list[dict[str, float]]:
    """The exponent is that of the time per image between two sides, by tokens."""
    table = Table("side, 90% masked, cross", "tokens", "step", "exponent")
    rows: list[dict[str, float]] = []
    for side in options.sides:
        variant = Variant(name="", ratio=0.90, side=side, depth=options.depth, kind="cross", heads=4)
        cost = _median(_in_turns([variant], options.rounds)[variant])
        row = {"side": side, "tokens": (side // 16) ** 2, "seconds": cost.seconds}
        exponent = ""
        if rows:
            row["exponent"] = _exponent(rows[-1], row)
            exponent = f"{row['exponent']:.2f}"
        table.add_row(f"{side} px", f"{row['tokens']:,.0f}", f"{cost.seconds:.2f} s", exponent)
        rows.append(row)
    console.print(table)
    return rows


def _exponent(before: dict[str, float], after: dict[str, float]) -> float:
    return math.log(after["seconds"] / before["seconds"]) / math.log(after["tokens"] / before["tokens"])


def _in_turns(variants: list[Variant], rounds: int) -> dict[Variant, list[Cost]]:
    costs: dict[Variant, list[Cost]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                costs[variant].append(pool.apply(measure, (variant,)))
    return costs


def _median(costs: list[Cost]) -> Cost:
    seconds = statistics.median(cost.seconds for cost in costs)
    return Cost(seconds=seconds, peak_gb=statistics.median(cost.peak_gb for cost in costs))


def measure(variant: Variant) -> Cost:
    """One step of one image after a short one that starts the libraries."""
    torch.set_num_threads(1)
    _step(dataclasses.replace(variant, side=32, depth=1, ratio=0.5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = _step(variant)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Cost(seconds=seconds, peak_gb=(after - before) * 1024 / 1e9)


def _step(variant: Variant) -> float:
    config = variant.config()
    torch.manual_seed(0)
    if variant.kind == "vitmae":
        theirs = vitmae(config)
        image_BCHW, _ = image_and_mask(config, images=1)
        started = time.process_time()
        theirs((image_BCHW.float() / 255 - 0.5) / 0.25).loss.backward()
        return time.process_time() - started
    ours = MAE(config)
    image_BCHW, rest = image_and_mask(config, images=1)
    started = time.process_time()
    ours(image_BCHW, *rest, 0).loss.backward()
    return time.process_time() - started


if __name__ == "__main__":
    main()
