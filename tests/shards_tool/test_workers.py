import os
import signal
from collections.abc import Iterator

import pytest

from shards_tool.workers import Died, Step, run_tasks


def double(task: int, step: Step) -> int:
    step(f"item {task}")
    return 2 * task


def die_at_three(task: int, step: Step) -> int:
    step(f"item {task}")
    if task == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return 2 * task


def fail_at_three(task: int, step: Step) -> int:
    if task == 3:
        raise OSError(28, "No space left on device", "shard")
    return 2 * task


def pid_of(task: int, step: Step) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_task_is_answered_once(workers: int):
    steps = []
    results = dict(run_tasks(double, range(20), workers=workers, on_step=lambda: steps.append(1)))
    assert results == {task: 2 * task for task in range(20)} and len(steps) == 20


def test_no_tasks_and_fewer_tasks_than_workers_are_fine():
    assert list(run_tasks(double, [], workers=2)) == []
    assert list(run_tasks(double, [1], workers=2)) == [(1, 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_costs_its_task_and_no_other(workers: int):
    results = dict(run_tasks(die_at_three, range(8), workers=workers))
    assert results.pop(3) == Died(item="item 3", exit_code=-signal.SIGSEGV)
    assert results == {task: 2 * task for task in range(8) if task != 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_in_a_task_reaches_the_caller(workers: int):
    with pytest.raises(OSError, match="No space left") as caught:
        list(run_tasks(fail_at_three, range(8), workers=workers))
    assert caught.value.errno == 28 and caught.value.filename == "shard"


def test_tasks_are_taken_as_workers_become_free():
    taken = []

    def tasks() -> Iterator[int]:
        for task in range(100):
            taken.append(task)
            yield task

    results = run_tasks(double, tasks(), workers=2)
    next(results)
    assert len(taken) <= 4
    results.close()  # type: ignore[attr-defined]


def test_leaving_early_ends_the_workers():
    results = run_tasks(pid_of, range(100), workers=2)
    pids = {next(results)[1] for _ in range(6)}
    results.close()  # type: ignore[attr-defined]
    for pid in pids:
        assert isinstance(pid, int)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
