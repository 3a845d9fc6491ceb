"""Three questions about a run, answered from its metrics: does it learn, is it fast, is anything wrong?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

Rows = Sequence[dict[str, Any]]
"""Lines of `metrics.jsonl`, in the order of images."""
RECENT = 20
"""Intervals that stand for "now"."""
WAITS = 0.1
"""Share of the time spent waiting for data from which a run is called slow."""
WORSE = 1.05
"""Validation loss over its least from which a run is called in trouble."""
SLOWER = 0.7
"""Images per second over the run's median below which it is called slow."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    question: str
    state: Literal["good", "unsure", "bad"]
    answer: str


def verdicts(rows: Rows) -> list[Verdict]:
    return [is_it_learning(rows), is_it_fast(rows), is_anything_wrong(rows)]


def is_it_learning(rows: Rows) -> Verdict:
    question = "Is it learning?"
    scored = [row for row in rows if "val/loss" in row]
    if len(scored) < 2:
        return Verdict(question=question, state="unsure", answer="Too early: no second validation yet.")
    first, last = scored[0]["val/loss"], scored[-1]["val/loss"]
    least = min(row["val/loss"] for row in scored)
    mean = scored[-1]["val/patch_mean"]
    parts = [f"Validation loss {last:.4f}, from {first:.4f} at first."]
    parts.append(
        f"Knowing each hidden patch's mean and nothing else gives {mean:.4f}: "
        + ("it sees what is inside patches." if last < mean else "it is not yet better than that.")
    )
    probes = [row for row in rows if "probe/logistic_value" in row]
    if probes:
        one, now = probes[0], probes[-1]
        parts.append(
            f"Frozen features tell findings with AUROC {now['probe/logistic_value']:.3f} "
            f"({now['probe/logistic_low']:.3f} to {now['probe/logistic_high']:.3f}), "
            f"at first {one['probe/logistic_value']:.3f}."
        )
    if last > WORSE * least or last >= first:
        state = "bad"
        parts.insert(0, f"No: it was {least:.4f} at best.")
    else:
        state = "good" if last < mean else "unsure"
    return Verdict(question=question, state=state, answer=" ".join(parts))


def is_it_fast(rows: Rows) -> Verdict:
    question = "Is it fast?"
    timed = [row for row in rows if "images_per_second" in row]
    if not timed:
        return Verdict(question=question, state="unsure", answer="Too early: no interval is complete.")
    recent = timed[-RECENT:]
    speed = float(np.median([row["images_per_second"] for row in recent]))
    usual = float(np.median([row["images_per_second"] for row in timed]))
    waited = float(np.nanmean([share for _, share in wait_shares(timed)[-RECENT:]] or [0.0]))
    utilised = [row["mfu"] for row in recent if "mfu" in row]
    parts = [f"{speed:.3g} images/s"]
    if utilised:
        parts[0] += f", {100 * np.median(utilised):.3g}% of the devices' peak (MFU)"
    parts[0] += f", {waited:.0%} of the time waiting for data."
    state = "good"
    if waited > WAITS:
        state = "bad"
        parts.append("Raise --data.threads and --data.readers, or look at the storage.")
    if speed < SLOWER * usual:
        state = "bad"
        parts.append(f"It has become slow: {usual:.3g} images/s is usual for this run.")
    return Verdict(question=question, state=state, answer=" ".join(parts))


def wait_shares(timed: Rows) -> list[tuple[int, float]]:
    """(images, share of the interval spent waiting for data) of the lines that have both."""
    shares = []
    for before, row in pairwise(timed):
        seconds = (row["images"] - before["images"]) / row["images_per_second"]
        if seconds > 0:
            shares.append((row["images"], min(1.0, row["data_wait_seconds"] / seconds)))
    return shares


def is_anything_wrong(rows: Rows) -> Verdict:
    question = "Is anything wrong?"
    timed = [row for row in rows if "images_per_second" in row]
    if not timed:
        return Verdict(question=question, state="unsure", answer="Too early: no interval is complete.")
    last = timed[-1]
    counts = {
        "rollbacks to a checkpoint": last.get("rollbacks", 0),
        "steps skipped because their gradient was not finite": last.get("skipped", 0),
        "spikes of the gradient norm": last.get("norm_spikes", 0),
        "spikes of the loss": last.get("loss_spikes", 0),
        "damaged films replaced": last.get("replaced", 0),
    }
    found = [f"{count:,.0f} {what}" for what, count in counts.items() if count]
    if not found:
        return Verdict(question=question, state="good", answer="Nothing that was noticed.")
    is_bad = bool(last.get("rollbacks") or last.get("skipped"))
    return Verdict(
        question=question, state="bad" if is_bad else "unsure", answer="; ".join(found).capitalize() + "."
    )
