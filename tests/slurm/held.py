"""xpt-train whose first starts end at a step of the test's choosing.

HELD names what happens to each start of the job, by its number of restarts, once it has made 3 steps:
`limit` waits for a signal, `kill` ends the last rank with SIGKILL. Later starts run to the end.
"""

import os
import signal
import sys
import time

from xpt import train

START = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
PLAN = dict(enumerate(os.environ["HELD"].split(","))).get(START, "")
STEPS = 3

signals: list[train.StopSignal] = []
steps = 0
set_learning_rate = train.set_learning_rate


class Remembered(train.StopSignal):
    def __init__(self) -> None:
        super().__init__()
        signals.append(self)


def at_each_step(engine: train.Engine, rate: float) -> None:
    global steps
    if steps == STEPS and PLAN == "limit":
        print("waiting for a signal", flush=True)
        while not signals[0].asked:
            time.sleep(0.05)
    if steps == STEPS and PLAN == "kill" and os.environ["SLURM_PROCID"] == "3":
        print(f"rank 3 dies at {time.time():.1f}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    steps += 1
    set_learning_rate(engine, rate)


train.StopSignal = Remembered
train.set_learning_rate = at_each_step
sys.argv = ["xpt-train", *sys.argv[2:]]  # the first was the program that it stands for
train.main()
