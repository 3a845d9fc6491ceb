"""Worker processes that may die: a crashed decoder costs one film, not the build.

`concurrent.futures` gives up the whole pool when one worker dies, and `multiprocessing.Pool` waits
for ever. Here each worker has its own pipe and says which item it starts, so that the parent knows
what a dead worker was doing, reports it and starts another.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Step = Callable[[str], None]
"""What a task calls with the name of the item that it is about to work on."""


_PATIENCE = 10.0
"""Seconds that a worker has for leaving its item when it is told to end."""


@dataclass(frozen=True, kw_only=True)
class Died:
    """A worker ended without an answer, e.g. in a decoder's segmentation fault or out of memory."""

    item: str
    """The last item that the task named."""
    exit_code: int
    """Negative: the number of the signal."""


@dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Any = None
    item: str = ""


def run_tasks(
    work: Callable[[T, Step], R],
    tasks: Iterable[T],
    *,
    workers: int,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, R | Died]]:
    """Yield each task with its result, in the order in which they end.

    `work` and what it returns must be picklable. `workers=0` works in this process. Tasks are taken
    from the iterable only as workers become free. An exception in a task is raised here, after which,
    as after Ctrl-C, all workers are ended.
    """
    if workers == 0:

        def step(_item: str) -> None:
            on_step()

        for task in tasks:
            yield task, work(task, step)
        return

    # Fork is unsafe beside the threads of a progress bar; a fork server imports once and is quick after that
    # (cli because each worker imports the main module anew, a quarter of a second where it is not there yet).
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [f"shards_tool.{name}" for name in ("pack", "scan", "shard", "verify", "cli")]
    )
    waiting = iter(tasks)
    pool: list[_Worker] = []
    try:
        while True:
            for task in _take(waiting, workers - len(pool)):
                pool.append(_start(context, work, task))
            if not pool:
                return
            for pipe in multiprocessing.connection.wait([worker.pipe for worker in pool]):
                worker = next(worker for worker in pool if worker.pipe is pipe)
                try:
                    kind, content = worker.pipe.recv()
                except (EOFError, OSError):  # also in the middle of a message
                    worker.process.join()
                    worker.pipe.close()
                    pool.remove(worker)
                    exit_code = worker.process.exitcode
                    assert exit_code is not None
                    yield worker.task, Died(item=worker.item, exit_code=exit_code)
                    continue
                if kind == "step":
                    worker.item = content
                    on_step()
                elif kind == "failed":
                    raise content
                else:
                    done, worker.item = worker.task, ""
                    following = next(waiting, None)
                    if following is None:
                        _stop(worker)
                        pool.remove(worker)
                    else:
                        worker.task = following
                        _send(worker.pipe, following)
                    yield done, content
    finally:
        for worker in pool:
            worker.process.terminate()
        for worker in pool:
            worker.process.join(_PATIENCE)
            worker.process.kill()  # one that hangs in a decoder's C code
            worker.process.join()
            worker.pipe.close()


def _take(waiting: Iterator[T], count: int) -> Iterator[T]:
    for _ in range(count):
        task = next(waiting, None)
        if task is None:
            return
        yield task


def _start(context: Any, work: Callable[[T, Step], R], task: T) -> _Worker:  # noqa: ANN401
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()  # so that its end is seen when the worker dies
    _send(ours, task)
    return _Worker(process=process, pipe=ours, task=task)


def _send(pipe: Connection, task: object) -> None:
    """Hand out a task; a worker that is dead already is noticed when its answer is awaited."""
    with contextlib.suppress(BrokenPipeError):
        pipe.send(task)


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.join()


def _leave(_signal: int, _frame: object) -> None:
    sys.exit(1)  # an exception, so that half-written files are removed


def _serve(work: Callable[[Any, Step], object], pipe: Connection) -> None:
    """The worker's loop: until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = pipe.recv()
            try:
                answer: tuple[str, object] = "done", work(task, lambda item: pipe.send(("step", item)))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
                answer = "failed", error
            pipe.send(answer)


def cpu_count() -> int:
    """The CPUs that this process may use: under Slurm fewer than the machine has."""
    return len(os.sched_getaffinity(0))
