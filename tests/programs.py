"""The installed programs, started at once: each run is a fork of one process that has imported them all.

A program, too: it reads one JSON object per line (program, arguments, folder, log, environment) and
answers with the exit status.
"""

import json
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.conftest import ROOT

INSTALLED: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""Module and function by the name of the command."""


class Programs:
    """One run at a time."""

    def __init__(self, log: Path) -> None:
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.programs"],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self._log = log

    def run(
        self, program: str, arguments: list[str], folder: Path, environment: dict[str, str]
    ) -> tuple[int, str]:
        """The exit status of `program` started in `folder`, and all that it printed.

        Args:
            environment: variables that differ from this process's.
        """
        log = folder / f"{program}.log"
        asked = {
            **{"program": program, "arguments": arguments},
            **{"folder": str(folder), "log": str(log), "environment": environment},
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._log.read_text()
        return json.loads(answer), log.read_text()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def become(asked: dict) -> None:
    """This process is the program from here on; it does not return."""
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(asked["folder"])
    os.environ |= asked["environment"]
    sys.argv = [asked["program"], *asked["arguments"]]
    status = 1
    try:
        pkgutil.resolve_name(INSTALLED[asked["program"]])()
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code)
        else:
            status = ended.code or 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print while they are imported
    for place in INSTALLED.values():
        pkgutil.resolve_name(place)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(asked)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)
    os._exit(0)  # unloading the libraries would take seconds


if __name__ == "__main__":
    main()
