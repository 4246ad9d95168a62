"""A process pool that survives its workers: a killed worker is replaced and its task done again.

Notable: the pool knows which task a dead worker held (an executor of the standard library gives up all of them);
workers die with the process that started them, even when that is killed by SIGKILL (PR_SET_PDEATHSIG); tasks are
given out in order and results may come back in any, so nothing may depend on who did what.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MAX_DEATHS = 5  # of workers on one task, before the task is given up


class WorkerFailed(RuntimeError):
    """A task raised, or killed every worker that took it. The message says which and why."""


def default_workers() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; exit at once if it has ended already."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _work(connection: Connection, function: Callable, parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    while True:
        task = connection.recv()
        if task is None:
            return
        try:
            answer = ("done", function(task, lambda amount: connection.send(("progress", amount))))
        except Exception as error:  # handed to the parent, which raises it
            answer = ("error", (f"{type(error).__name__}: {error}", traceback.format_exc()))
        connection.send(answer)


class _Worker:
    """One process, its pipe, and the index of the task it holds."""

    def __init__(self, function: Callable):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.task: int | None = None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_tasks(
    function: Callable[[Any, Callable[[int], None]], Any],
    tasks: Sequence[Any],
    workers: int,
    on_progress: Callable[[int], None] = lambda amount: None,
    on_death: Callable[[Any, int], None] = lambda task, code: None,
) -> Iterator[tuple[int, Any]]:
    """Run function(task, progress) for every task in `workers` processes; yield (index, result) as they end.

    `function` must be importable by name; `workers` 0 runs it in this process. `progress(amount)` in the worker calls
    `on_progress` here. `on_death(task, exit code)` is called before a task is done again. Raises WorkerFailed for
    a task that raised or whose workers died MAX_DEATHS times.
    """
    if workers <= 0:
        for index, task in enumerate(tasks):
            yield index, function(task, on_progress)
        return
    waiting, deaths = deque(range(len(tasks))), [0] * len(tasks)
    pool: list[_Worker] = []
    try:
        pool += [_Worker(function) for _ in range(min(workers, len(tasks)))]
        unfinished = len(tasks)
        while unfinished:
            for worker in pool:
                _give(worker, waiting, tasks)
            ready = set(
                wait([x for w in pool for x in (w.connection, w.process.sentinel) if w.task is not None])
            )
            for place, worker in enumerate(pool):
                if worker.task is None or not {worker.connection, worker.process.sentinel} & ready:
                    continue
                message = _receive(worker)
                if message is None:
                    pool[place] = _replace(worker, function, tasks, deaths, waiting, on_death)
                elif message[0] == "progress":
                    on_progress(message[1])
                elif message[0] == "error":
                    raise WorkerFailed(message[1][0]) from RuntimeError(message[1][1])
                else:
                    index, worker.task = worker.task, None
                    unfinished -= 1
                    yield index, message[1]
    finally:
        for worker in pool:
            worker.stop()


def _give(worker: _Worker, waiting: deque[int], tasks: Sequence[Any]) -> None:
    if worker.task is None and waiting:
        worker.task = waiting.popleft()
        with contextlib.suppress(BrokenPipeError):  # it died idle: noticed by its sentinel, and replaced
            worker.connection.send(tasks[worker.task])


def _receive(worker: _Worker) -> tuple[str, Any] | None:
    """The worker's next message, or None where it is dead and has left none."""
    try:
        return worker.connection.recv() if worker.connection.poll() else None
    except (EOFError, ConnectionResetError):
        return None


def _replace(
    worker: _Worker,
    function: Callable,
    tasks: Sequence[Any],
    deaths: list[int],
    waiting: deque[int],
    on_death: Callable[[Any, int], None],
) -> _Worker:
    """Bury a dead worker, put its task first in the line, and start another."""
    index = worker.task
    worker.process.join()
    code = worker.process.exitcode or 0
    worker.connection.close()
    deaths[index] += 1
    if deaths[index] >= MAX_DEATHS:
        raise WorkerFailed(
            f"{deaths[index]} workers died on the same task (last exit code {code}). Where the code is -9, the "
            "machine may be short of memory: use fewer workers."
        )
    on_death(tasks[index], code)
    waiting.appendleft(index)
    return _Worker(function)
