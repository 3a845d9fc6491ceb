"""Look at the checkpoints of a run, check them, and remove those that are not needed.

xpt-ckpt ls RUN
xpt-ckpt verify RUN
xpt-ckpt prune RUN --last 2 --every 10000000
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from xpt.training.saved import fault_of, folders, read, remove, surplus

log = logging.getLogger("xpt")


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(prog="xpt-ckpt", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("ls", "one line per checkpoint"),
        ("verify", "read every file and compare its checksum; exit status 1 where one is damaged"),
        ("prune", "remove intact checkpoints that no rule keeps; damaged ones stay for you to look at"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("run", type=Path, help="run folder")
    command.add_argument("--last", type=int, default=2, help="keep the newest N (default 2)")
    command.add_argument("--every", type=int, default=0, help="keep one per this many images (0: no such)")
    command.add_argument("--no-best", action="store_true", help="drop the one of lowest validation loss too")
    command.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    given = parser.parse_args(arguments)
    try:
        if not (given.run / "checkpoints").is_dir():
            raise ValueError(f"{given.run}: no folder `checkpoints` in it; wanted a run folder")
        if given.command == "prune":
            prune(given.run, last=given.last, every=given.every, best=not given.no_best, dry=given.dry_run)
            status = 0
        else:
            status = {"ls": ls, "verify": verify}[given.command](given.run)
    except (ValueError, OSError) as error:
        log.error("%s", error)
        status = 2
    sys.exit(status)


def ls(run: Path) -> int:
    """Print what there is, without reading the weights; returns the exit status."""
    log.info("%-30s %-16s %8s %6s %5s %9s", "checkpoint", "written", "GB", "ranks", "ZeRO", "val/loss")
    for folder in [*folders(run), *sorted((run / "checkpoints").glob("damaged-*"))]:
        try:
            checkpoint = read(folder)
            ranks, stage = (checkpoint.description[name] for name in ("world_size", "zero_stage"))
            loss = checkpoint.val_loss
        except (OSError, ValueError):
            ranks, stage, loss = "?", "?", None
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e9
        written = datetime.fromtimestamp(folder.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        shown = "" if loss is None else f"{loss:.4f}"
        log.info("%-30s %-16s %8.3f %6s %5s %9s", folder.name, written, size, ranks, stage, shown)
    return 0


def verify(run: Path) -> int:
    """Print the state of every checkpoint; returns the exit status, 1 where one is damaged."""
    faults = {folder.name: fault_of(folder) for folder in folders(run)}
    for name, fault in faults.items():
        log.info("%s  %s", name, fault or "intact")
    log.info("%d of %d checkpoints are intact", list(faults.values()).count(None), len(faults))
    return 0 if all(fault is None for fault in faults.values()) else 1


def prune(run: Path, *, last: int, every: int, best: bool, dry: bool) -> None:
    """Raises ValueError for rules that would leave nothing to go on from."""
    if last < 1 or every < 0:
        raise ValueError(f"--last {last} --every {every}: wanted at least 1, and 0 or more")
    intact = [read(folder) for folder in folders(run) if fault_of(folder) is None]
    doomed = surplus(intact, last=last, every=every, best=best)
    for checkpoint in doomed:
        log.info("%s %s", "would remove" if dry else "removing", checkpoint.folder.name)
        if not dry:
            remove(checkpoint)
    log.info("%d of %d intact checkpoints stay", len(intact) - len(doomed), len(intact))


if __name__ == "__main__":
    main()
