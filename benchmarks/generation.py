"""Decoding with kept keys and values beside decoding without: the same text, and how much faster.

python -m benchmarks.generation [--tokens 100] [--json FILE]
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from xpt.models.report_decoder import Memory, ReportDecoder
from xpt.tasks.generation import GenerationConfig, beam_search
from xpt.text.tokenizer import LANGUAGE_TOKEN


def main(
    tokens: int = 100,
    studies: int = 2,
    beams: int = 3,
    rounds: int = 3,
    width: int = 512,
    depth: int = 6,
    memory_tokens: int = 400,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Process time of both on this machine's CPU, in turns, with random weights.

    Args:
        tokens: of every report.
        json_file: where to write the numbers too.
    """
    torch.manual_seed(0)
    decoder = ReportDecoder(
        vocabulary=4096, longest=tokens, width=width, depth=depth, heads=width // 64
    ).eval()
    torch.nn.init.normal_(decoder.embed.weight, std=0.2)  # texts that do not hang on rounding
    seen = Memory(
        torch.randn(studies, memory_tokens, width), torch.ones(studies, memory_tokens, dtype=torch.bool)
    )
    language_B = torch.full((studies,), LANGUAGE_TOKEN["en"])
    kept = GenerationConfig(longest=tokens, shortest=tokens - 1, beams=beams, no_repeat=3)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    texts: dict[bool, list[list[int]]] = {}
    for _ in range(rounds):
        for use_cache in (True, False):
            before = time.process_time()
            texts[use_cache] = beam_search(decoder, seen, language_B, replace(kept, use_cache=use_cache))
            seconds[use_cache].append(time.process_time() - before)
        assert texts[True] == texts[False], "the cache changes the text"
    faster = median(seconds[False]) / median(seconds[True])
    console = Console()
    console.print("oracle: both write the identical text", highlight=False)
    table = Table("decoding", "process time, median", "ms per token and study")
    for use_cache, name in ((True, "with the cache"), (False, "without")):
        taken = median(seconds[use_cache])
        table.add_row(name, f"{taken:.2f} s", f"{1000 * taken / tokens / studies:.1f}")
    console.print(table)
    console.print(f"{faster:.1f} times faster at {tokens} tokens, {beams} beams", highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps({"cached": seconds[True], "plain": seconds[False], "ratio": faster}))


if __name__ == "__main__":
    tyro.cli(main)
