"""The command line of a run: `--preset NAME`, then flags, made from the types, that override its fields."""

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from xpt.config import PRESETS, Config, RunConfig

R = TypeVar("R", bound=RunConfig)


def parse(arguments: Sequence[str]) -> Config:
    """The configuration of a pretraining run's command line; raises as `parse_run` does."""
    config = parse_run(arguments, PRESETS, default="vit_l_1280")
    return config if config.run_dir else dataclasses.replace(config, run_dir=f"runs/{config.preset}")


def parse_run(arguments: Sequence[str], presets: Mapping[str, Callable[[], R]], *, default: str) -> R:
    """The configuration of a command line: `--preset NAME`, then flags that override its fields.

    Raises ValueError for an unknown preset or a field out of range; SystemExit, by tyro, for an
    unknown flag (it names the nearest).
    """
    arguments = _without_launcher_flags(arguments)
    name = _flag_value(arguments, "--preset") or default
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ValueError(f"--preset {name}: no such preset. {hint}There are: {', '.join(presets)}.")
    start = presets[name]()
    config = tyro.cli(type(start), default=start, args=arguments, description=type(start).__doc__)
    path = config.data.path or os.environ.get("XPT_DATA", "")
    if path:  # whoever reads the run's configuration later may stand elsewhere
        path = str(Path(path).absolute())
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _flag_value(arguments: Sequence[str], flag: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(flag + "="):
            return argument.removeprefix(flag + "=")
    return None


def _without_launcher_flags(arguments: Sequence[str]) -> list[str]:
    """Drop `--local_rank=N`, which the deepspeed launcher adds; the rank is in the environment."""
    return [a for a in arguments if not a.startswith("--local_rank=")]
