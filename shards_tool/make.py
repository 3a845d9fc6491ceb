"""Have workers make all films that are not made yet, in packs; a film that kills two workers is damaged."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from shards_tool.files import remove_temporary_files
from shards_tool.ledger import Ledger
from shards_tool.pack import FilmMaker, PackTask
from shards_tool.progress import progress_bar
from shards_tool.settings import BuildStoppedError
from shards_tool.workers import Died, run_tasks

log = logging.getLogger(__name__)

PACK_FILMS = 32
"""Films in a pack: what a kill costs a worker at most."""
_MAX_DEATHS = 2
"""Workers that may die at one film: the first may be someone's kill, the second is the film."""


def make_films(ledger: Ledger, maker: FilmMaker, folder: str, workers: int) -> None:
    """Make the films of the plan that are not in a pack yet.

    Args:
        folder: of the packs, relative to the output folder.

    Raises:
        BuildStoppedError: workers die before they begin.
        OSError: the disk is full, or a source has gone away.
    """
    remove_temporary_files(maker.out / folder)
    total = ledger.list_films_to_make()
    todo: Iterator[PackTask] = _packs(ledger, folder)
    deaths: Counter[str] = Counter()
    failed = 0
    with progress_bar("films ", total=total) as bar:
        while True:
            again: list[PackTask] = []
            for task, result in run_tasks(maker, todo, workers=workers, on_step=bar.advance):
                if isinstance(result, Died):
                    deaths[result.item] += 1
                    log.warning("a worker died at film %s (exit code %d)", result.item, result.exit_code)
                    if not result.item and deaths[""] >= _MAX_DEATHS:
                        raise BuildStoppedError(
                            "workers die before their first film; is there enough memory?"
                        )
                    crashed = {key for key, count in deaths.items() if count >= _MAX_DEATHS}
                    again.append(dataclasses.replace(task, crashed=task.crashed | crashed))
                    continue
                ledger.add_made(result)
                failed += sum(film.outcome == "quarantine" for film in result)
                bar.note(f"{failed} in quarantine" if failed else "")
            if not again:
                return
            todo = iter(again)


def _packs(ledger: Ledger, folder: str) -> Iterator[PackTask]:
    last = PurePosixPath(ledger.last_pack(folder)).stem
    first = int(last.removeprefix("pack-")) + 1 if last else 0
    for number, films in enumerate(ledger.films_to_make(PACK_FILMS), start=first):
        yield PackTask(name=f"{folder}/pack-{number:08d}.bin", films=films)
