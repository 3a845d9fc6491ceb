"""xpt-train whose job meets, one start after the other, what the test has in store for it.

HELD names the events, in order: `limit` waits for a signal, `kill` ends the last rank with SIGKILL. An
event comes in the third step of a start, and only once: HELD_MARKS is a folder where each leaves a file.
A start that Slurm ends before that meets the same event again.
"""

import os
import signal
import sys
import time
from pathlib import Path

from xpt import train
from xpt.training.engine import Engine

MARKS = Path(os.environ["HELD_MARKS"])
EVENTS = os.environ["HELD"].split(",")
STEP = 2

met = len(list(MARKS.iterdir()))
event = EVENTS[met] if met < len(EVENTS) else ""
signals: list[train.StopSignal] = []
steps = 0
set_learning_rate = train.set_learning_rate


class Remembered(train.StopSignal):
    def __init__(self) -> None:
        super().__init__()
        signals.append(self)


def at_each_step(engine: Engine, rate: float) -> None:
    global steps
    if steps == STEP and event:
        (MARKS / str(met)).touch()
        print(f"{event} at {time.time():.1f}", flush=True)
    if steps == STEP and event == "limit":
        while not signals[0].asked:
            time.sleep(0.05)
    if steps == STEP and event == "kill" and os.environ["SLURM_PROCID"] == "3":
        os.kill(os.getpid(), signal.SIGKILL)
    steps += 1
    set_learning_rate(engine, rate)


train.StopSignal = Remembered
train.set_learning_rate = at_each_step
sys.argv = ["xpt-train", *sys.argv[2:]]  # the first was the program that it stands for
train.main()
