"""What happens where training stands still: every rank says what it is doing, writes its stacks, and ends.

A rank that hangs leaves the others waiting in a collective, where nothing tells which one it was. So each
rank watches itself. Half-way to the limit a thread writes the stacks of all its threads to a file; at the
limit faulthandler, which needs no lock of Python's, writes them again and ends the process. Then the job
ends on all ranks, and goes on from its last checkpoint.
"""

import faulthandler
import logging
import threading
import time
from pathlib import Path
from types import TracebackType

log = logging.getLogger("xpt")
FOLDER = "stacks"
"""In the run folder; one file for each rank that stood still."""


def limit_start(seconds: float) -> None:
    """What comes before training may take `seconds` from now; then the process writes its stacks and ends.

    A file system that does not answer, or a lock that a killed process left behind, would hold it up for
    good. A `Watchdog` takes over from here.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)


def lift_limit() -> None:
    """What comes may take as long as it takes."""
    faulthandler.cancel_dump_traceback_later()


class Watchdog:
    """Of one rank, in use as `with Watchdog(...) as watch`. Tell it with `begin` that training moves."""

    def __init__(self, run: Path, rank: int, *, seconds: float) -> None:
        """`seconds`: the longest that anything begun may take."""
        self._path = run / FOLDER / f"rank-{rank:05d}.txt"
        self._rank = rank
        self._seconds = seconds
        self._begun = ("starting", time.monotonic())
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="xpt-watchdog", daemon=True)
        self.phase = ""
        """What of the thing begun is being done; only for the log."""

    def begin(self, what: str) -> None:
        """Training has come as far as `what`, which may now take the whole time."""
        self.phase = ""
        self._begun = (what, time.monotonic())
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def __enter__(self) -> "Watchdog":
        self._path.parent.mkdir(exist_ok=True)
        self._file = self._path.open("a")
        self.begin("starting")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._is_over.set()
        self._thread.join()
        self._file.close()
        if self._path.stat().st_size == 0:
            self._path.unlink()

    def _watch(self) -> None:
        told = None
        while not self._is_over.wait(self._seconds / 20):
            begun = self._begun
            what, since = begun
            age = time.monotonic() - since
            if age < self._seconds / 2 or begun is told:
                continue
            told = begun
            doing = f"{what}{', ' if self.phase else ''}{self.phase}"
            log.warning(
                "rank %d: %s has taken %.0f s; at %.0f s this process ends, and the same command goes on "
                "from the last checkpoint. What its threads are doing: %s",
                *(self._rank, doing, age, self._seconds, self._path),
            )
            self._file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {doing} for {age:.0f} s\n")
            self._file.flush()
            faulthandler.dump_traceback(self._file, all_threads=True)
