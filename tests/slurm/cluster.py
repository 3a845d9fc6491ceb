"""A real two-node Slurm on this host: its own munge, controller and node daemons, all on loopback.

Nothing outside its folder is written, and only processes that it started are ended.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
DAEMONS = ("munged", "slurmctld", "slurmd")
# A requeued job starts when the credential of its last start has expired: here after seconds, not minutes.
CONFIGURATION = """
ClusterName=xpt
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
CommunicationParameters=NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=0,sched_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs=8 RealMemory=4000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=node[1-2] Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=hasty Nodes=node[1-2] PriorityTier=1 GraceTime=0 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=node[1-2] PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
"""Jobs of `urgent` preempt those of `all`, with a minute's notice, and of `hasty`, without."""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "Slurm's daemons need root"
    absent = [name for name in DAEMONS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (tests/slurm/install.sh)" if absent else ""


@dataclass
class Cluster:
    """Two nodes of 8 CPUs."""

    folder: Path

    def __post_init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        first = _free_ports(3)
        configuration = CONFIGURATION.format(
            host=socket.gethostname(),
            folder=self.folder,
            controller_port=first,
            node_ports=f"{first + 1}-{first + 2}",
        )
        (self.folder / "state").mkdir(parents=True)
        (self.folder / "slurm.conf").write_text(configuration)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    @property
    def environment(self) -> dict[str, str]:
        ours = ("SLURM_", "SBATCH_", "XPT_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        return inherited | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        try:
            self._start_daemons()
        except AssertionError:
            self._end_daemons()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, check=False)
        self._wait("an empty queue", lambda: not self._ask("squeue", "-h"))
        self._end_daemons()

    def _start_daemons(self) -> None:
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{suffix}" for option, suffix in files.items()]
        self._start("munged", "--foreground", "--force", "--num-threads=2", *options)
        self._wait("munge", lambda: (self.folder / "munge.socket").exists())
        self._start("slurmctld", "-D")
        for node in ("node1", "node2"):
            self._start("slurmd", "-D", "-N", node)
        self._wait(
            "both nodes",
            lambda: self._ask("sinfo", "-h", "-N", "-p", "all", "-o", "%T").split() == ["idle"] * 2,
        )

    def _end_daemons(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)

    def submit(self, *arguments: str, **settings: str) -> int:
        """`sbatch` from the repository's root; `settings` are environment variables. The job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            cwd=ROOT,
            env=self.environment | settings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says, by field."""
        words = self._ask("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, number: int, *states: str, timeout: float = 300) -> dict[str, str]:
        """Until the job is in one of `states`; fails where it ends in another."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        self._wait(
            f"job {number} to be {' or '.join(states)}",
            lambda: self.job(number)["JobState"] in (*states, *ended),
            timeout,
        )
        found = self.job(number)
        assert found["JobState"] in states, found
        return found

    def limit_time(self, number: int, minutes: int) -> None:
        """Another time limit for a job, pending or running, in minutes from its start."""
        command = ["scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}"]
        subprocess.run(command, env=self.environment, check=True)

    def end_soon(self, number: int) -> None:
        """A time limit that is one to two minutes away."""
        hours, minutes, _ = self.job(number)["RunTime"].split(":")
        self.limit_time(number, 60 * int(hours) + int(minutes) + 2)

    def wait_for_restart(self, number: int, restarts: int, timeout: float = 240) -> None:
        """Until the job has been put back into the queue `restarts` times."""
        self._wait(
            f"restart {restarts} of job {number}",
            lambda: int(self.job(number)["Restarts"]) >= restarts,
            timeout,
        )

    def cancel(self, number: int) -> None:
        subprocess.run(["scancel", str(number)], env=self.environment, check=True)

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}-{len(self._processes)}.out").open("wb") as log:
            # Their own session: a Ctrl-C that ends the tests leaves it to us to end the daemons in order.
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)

    def _ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def _wait(self, what: str, is_true, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while not is_true():
            logs = [p.read_text(errors="replace")[-2000:] for p in sorted(self.folder.glob("*.log"))]
            assert time.monotonic() < end, f"{what}: not within {timeout} s\n" + "\n".join(logs)
            time.sleep(0.2)


def _free_ports(count: int) -> int:
    """The first of `count` consecutive free ports."""
    for first in range(16_800 + os.getpid() % 1_000, 30_000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        else:
            return first
        finally:
            for each in sockets:
                each.close()
    raise AssertionError("no free ports")
