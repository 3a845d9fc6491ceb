"""Training runs that start at once: each rank is a fork of one process that has imported everything.

A program, too: it reads one JSON object per line (ranks, arguments, log, port, sabotage) and answers with
the ranks' process numbers, and when they have ended with their exit statuses.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.xpt.conftest import TINY, free_port


@dataclass(frozen=True)
class ForkedRun:
    pids: list[int]
    log: Path
    forker: "subprocess.Popen[str]"

    def send(self, number: signal.Signals) -> None:
        """To all ranks that are still there."""
        for pid in self.pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def wait(self) -> list[int]:
        """The exit statuses, a signal's as its negative number."""
        assert self.forker.stdout is not None
        return json.loads(self.forker.stdout.readline())


class Forker:
    """One run at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.xpt.forks"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, folder: Path, shards: Path, *flags: str, ranks: int = 1, sabotage: str = "") -> ForkedRun:
        """As `tests.xpt.conftest.start`."""
        log = Path(f"{folder}.log")
        asked = {
            "ranks": ranks,
            "arguments": [*TINY, "--data.path", str(shards), "--run_dir", str(folder), *flags],
            "log": str(log),
            "port": free_port(),
            "sabotage": sabotage,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return ForkedRun(json.loads(self._process.stdout.readline()), log, self._process)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(120)
        self._process.stdout.close()


def become(rank: int, asked: dict) -> None:
    """This process is one rank from here on; it does not return."""
    from xpt import train

    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(asked["ranks"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(asked["port"])}
    sys.argv = ["xpt-train", *asked["arguments"]]
    status = 1
    try:
        exec(asked["sabotage"], {})
        train.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        os._exit(status)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print while they are imported
    import xpt.train  # noqa: F401  what takes the time

    for line in sys.stdin:
        asked = json.loads(line)
        pids = []
        for rank in range(asked["ranks"]):
            pid = os.fork()
            if pid == 0:
                become(rank, asked)
            pids.append(pid)
        print(json.dumps(pids), file=answers, flush=True)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(statuses), file=answers, flush=True)


if __name__ == "__main__":
    main()
