"""Process time of variants that take turns."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def in_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median process time of each in seconds, on one thread, after one run that is not counted."""
    torch.set_num_threads(1)
    for run in variants.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            before = time.process_time()
            run()
            found[name].append(time.process_time() - before)
    return {name: statistics.median(seconds) for name, seconds in found.items()}
