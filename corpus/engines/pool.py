"""A process pool that survives its workers: a killed worker is replaced and its task is retried.

Notable: the pool knows which task a dead worker held (an executor of the standard library fails all of them);
workers die with the process that started them, even when that is killed by SIGKILL (PR_SET_PDEATHSIG); a worker
loads what its function needs and never the caller's main module (multiprocessing's "spawn" does, which under Ray
costs a second and in a notebook fails); tasks are assigned in order and results may come back in any order, so
nothing may depend on which worker ran what.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from corpus.engines.engine import OnDeath, Unit, WorkerFailed

DECIDES_NOTHING = "where the units run"

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MAX_DEATHS = 5  # consecutive unexplained deaths of workers on one task before the run fails


@dataclass(frozen=True)
class LocalEngine:
    """A pool of processes on this machine. `workers`: None is one a core, 0 runs the units in this process."""

    workers: int | None = None

    @property
    def isolated(self) -> bool:
        """Whether units run in processes of their own."""
        return self.workers != 0

    def run(
        self,
        function: Unit,
        tasks: Sequence[Any],
        on_progress: Callable[[int], None] = lambda amount: None,
        on_death: OnDeath | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """See corpus.engines.engine.Engine."""
        workers = default_workers() if self.workers is None else self.workers
        return run_tasks(function, tasks, workers, on_progress, on_death)

    def close(self) -> None:
        """Nothing to release."""


def default_workers() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; exit at once if it has ended already."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


# A worker uses one core. Loading numpy starts an OpenBLAS thread for every core, at a tenth of a second each.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# What a worker's process runs. Arguments: its socket's descriptor, its parent's process id, sys.path as JSON.
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from corpus.engines.pool import worker_main; worker_main(int(sys.argv[1]), int(sys.argv[2]))"
)


class _PandasBlocker:
    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError("pandas is blocked in this process: block_pandas().")


def block_pandas() -> None:
    """Make `import pandas` fail for the rest of this process. pyarrow imports pandas (a third of a second) only to test
    whether its input is a pandas object, and works without it."""
    sys.meta_path.insert(0, _PandasBlocker)


def worker_main(socket_number: int, parent: int) -> None:
    """A worker's main loop: receive a function, then tasks; send back progress and results."""
    die_with_parent(parent)
    # No core files.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts
    block_pandas()
    connection = Connection(socket_number)
    function = connection.recv()
    gc.freeze()  # modules stay loaded, and pages leave hardly any cycles to collect
    gc.set_threshold(20_000, 50, 100)
    while True:
        task = connection.recv()
        try:
            message = ("done", function(task, lambda amount: connection.send(("progress", amount))))
        except Exception as error:  # sent to the parent, which raises it
            message = ("error", (f"{type(error).__name__}: {error}", traceback.format_exc()))
        connection.send(message)


class _Worker:
    """One process, its socket (closed when it dies), and the index of the task it holds."""

    def __init__(self, function: Unit):
        ours, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(os.getpid()), json.dumps(sys.path)]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *arguments],
                pass_fds=[theirs.fileno()],
                env=os.environ | ONE_THREAD,
                stdin=subprocess.DEVNULL,
            )
        self.connection = Connection(ours.detach())
        with contextlib.suppress(BrokenPipeError):  # dead already: noticed when it is assigned a task
            self.connection.send(function)
        self.task: int | None = None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def run_tasks(
    function: Unit,
    tasks: Sequence[Any],
    workers: int,
    on_progress: Callable[[int], None] = lambda amount: None,
    on_death: OnDeath | None = None,
) -> Iterator[tuple[int, Any]]:
    """Run function(task, progress) for every task in `workers` processes; yield (index, result) as they end.

    `function` must be importable by name; `workers` 0 runs it in this process. `progress(amount)` in the worker calls
    `on_progress` here. `on_death(task, exit code)` is called before a task is retried; it returns True where the cause
    is known and will not recur. Raises WorkerFailed for a task that raised or whose workers died MAX_DEATHS times in a
    row of unknown causes.
    """
    if workers <= 0:
        for index, task in enumerate(tasks):
            yield index, function(task, on_progress)
        return
    if function.__module__ == "__main__":
        raise ValueError(
            f"{function.__qualname__} is defined in the main program, which workers do not load. "
            "Move it into a module that can be imported."
        )
    waiting, deaths = deque(range(len(tasks))), [0] * len(tasks)
    pool: list[_Worker] = []
    try:
        for _ in range(min(workers, len(tasks))):
            pool.append(_Worker(function))
        unfinished = len(tasks)
        while unfinished:
            for worker in pool:
                _assign(worker, waiting, tasks)
            ready = wait([worker.connection for worker in pool if worker.task is not None])
            for place, worker in enumerate(pool):
                if worker.connection not in ready:
                    continue
                message = _receive(worker)
                if message is None:
                    pool[place] = _replace(worker, function, tasks, deaths, waiting, on_death)
                elif message[0] == "progress":
                    on_progress(message[1])
                elif message[0] == "error":
                    raise WorkerFailed(message[1][0]) from RuntimeError(message[1][1])
                else:
                    index, worker.task = _held(worker), None
                    unfinished -= 1
                    yield index, message[1]
    finally:
        for worker in pool:
            worker.stop()


def _held(worker: _Worker) -> int:
    """The index of the task that a busy worker holds."""
    if worker.task is None:
        raise RuntimeError("A worker sent a result without holding a task.")
    return worker.task


def _assign(worker: _Worker, waiting: deque[int], tasks: Sequence[Any]) -> None:
    if worker.task is None and waiting:
        worker.task = waiting.popleft()
        with contextlib.suppress(
            BrokenPipeError
        ):  # it died idle: noticed when its socket closes, and replaced
            worker.connection.send(tasks[worker.task])


def _receive(worker: _Worker) -> tuple[str, Any] | None:
    """The worker's next message, or None where it is dead and has sent no more."""
    try:
        return worker.connection.recv()
    except (EOFError, ConnectionResetError):
        return None


def _replace(
    worker: _Worker,
    function: Unit,
    tasks: Sequence[Any],
    deaths: list[int],
    waiting: deque[int],
    on_death: OnDeath | None,
) -> _Worker:
    """Remove a dead worker, put its task at the head of the queue, and start another worker."""
    index = _held(worker)
    code = worker.process.wait()
    worker.connection.close()
    explained = on_death is not None and on_death(tasks[index], code)
    deaths[index] = 0 if explained else deaths[index] + 1
    if deaths[index] >= MAX_DEATHS:
        raise WorkerFailed(
            f"{deaths[index]} workers died on the same task (last exit code {code}). Where the code is -9, the "
            "machine may be short of memory: use fewer workers."
        )
    waiting.appendleft(index)
    return _Worker(function)
