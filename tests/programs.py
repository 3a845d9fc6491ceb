"""The installed programs, started at once: each process is a fork of one that has imported them all.

A program, too: it reads one JSON object per line, what to start, and answers with the process's number. Tests
of launchers and of the job scripts start the programs as users do.
"""

import contextlib
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from tests.conftest import ROOT

INSTALLED: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""Module and function by the name of the command."""


@dataclass(frozen=True)
class Process:
    pid: int
    status: Path
    """Has the exit status once it has ended."""

    def poll(self) -> int | None:
        """The exit status, a signal's as its negative number; None while it runs."""
        return int(self.status.read_text()) if self.status.exists() else None

    def wait(self, timeout: float = 120) -> int:
        """Raises TimeoutError."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            time.sleep(0.01)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Programs:
    def __init__(self, folder: Path) -> None:
        """`folder` is for the processes' exit statuses and for what the imports say."""
        self._folder = folder
        self._started: list[Process] = []
        with (folder / "log").open("w") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.programs"],
                cwd=ROOT,
                # Asked in PyTorch's usual way whether there is a GPU, no fork of this process could use it.
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(
        self,
        program: str,
        arguments: Sequence[str],
        folder: Path,
        *,
        log: Path,
        environment: Mapping[str, str],
        sabotage: str = "",
    ) -> Process:
        """Start `program` in `folder`.

        Args:
            log: what it prints is added to this file.
            environment: variables that differ from this process's.
            sabotage: Python that the process runs first.
        """
        status = self._folder / str(len(self._started))
        asked = {
            **{"program": program, "arguments": list(arguments), "folder": str(folder), "log": str(log)},
            **{"environment": os.environ | environment, "sabotage": sabotage, "status": str(status)},
        }
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, (self._folder / "log").read_text()
        self._started.append(Process(int(answer), status))
        return self._started[-1]

    def run(
        self, program: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> tuple[int, str]:
        """The exit status of `program` started in `folder`, and all that it printed."""
        log = folder / f"{program}.log"
        log.unlink(missing_ok=True)
        status = self.start(program, arguments, folder, log=log, environment=environment).wait(400)
        return status, log.read_text()

    def close(self) -> None:
        """Ends what still runs."""
        for process in self._started:
            process.send_signal(signal.SIGKILL)
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def programs() -> Programs:
    """Those of this test process; its end closes them (`tests.conftest`)."""
    return Programs(Path(tempfile.mkdtemp(prefix="xpt-programs-")))


def become(asked: dict[str, Any]) -> None:
    """This process is the program from here on; it does not return."""
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [asked["program"], *asked["arguments"]]
    status = 1
    try:
        exec(asked["sabotage"], {})
        pkgutil.resolve_name(INSTALLED[asked["program"]])()
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code)
        else:
            status = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # unloading the libraries would take seconds


def look_after(asked: dict[str, Any], answers: TextIO) -> None:
    """This process starts the program, says its number, and waits for its end; it does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(answers.fileno())
        become(asked)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(pid, file=answers, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    path = Path(asked["status"])
    path.with_suffix(".part").write_text(str(status))
    path.with_suffix(".part").replace(path)
    os._exit(0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print while they are imported
    for place in INSTALLED.values():
        pkgutil.resolve_name(place)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever looks after a program is not waited for
    for line in sys.stdin:
        if os.fork() == 0:
            look_after(json.loads(line), answers)
    os._exit(0)


if __name__ == "__main__":
    main()
