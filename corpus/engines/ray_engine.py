"""Units on Ray Core (extra `[ray]`): one Ray task a unit, each in a child of the Ray worker that may be killed.

Connects to the cluster that RAY_ADDRESS names, else starts Ray on this machine for the time of the run: without
dashboard and usage reports, on the loopback address. A task whose Ray worker or node died is submitted again.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from corpus.engines.engine import OnDeath, Unit, WorkerFailed
from corpus.engines.pool import MAX_DEATHS, default_workers
from corpus.engines.wire import TaskBatch, decode_result, encode_batch, run_batch

DECIDES_NOTHING = "where the units run"

POLL = 0.5  # seconds between looks at the progress
# Options of a Ray that we start: small, because data is exchanged in files, and visible to this machine only.
OWN_CLUSTER: dict[str, Any] = {
    "include_dashboard": False,
    "object_store_memory": 100 << 20,  # bytes
    "_node_ip_address": "127.0.0.1",
}
KILLED = -9  # exit code reported for a dead Ray worker


@dataclass
class RayEngine:
    """Ray Core. `workers`: units at a time (None: as many as the cluster has cores)."""

    workers: int | None = None
    isolated: bool = True
    _connected: bool = False  # whether we started Ray or connected to it, and so disconnect

    def run(
        self,
        function: Unit,
        tasks: Sequence[Any],
        on_progress: Callable[[int], None] = lambda amount: None,
        on_death: OnDeath | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """See corpus.engines.engine.Engine."""
        if not tasks:
            return
        ray = self._ray()
        running: dict[Any, int] = {}  # Ray's reference to the result -> unit
        progress = None
        try:
            progress = ray.remote(num_cpus=0)(_Progress).remote()
            unit = ray.remote(num_cpus=1, max_retries=0)(_run_unit)
            at_once = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            waiting, deaths = list(range(len(tasks)))[::-1], [0] * len(tasks)
            while waiting or running:
                # A few more than can run, so that a worker that becomes free finds its next task.
                while waiting and len(running) < (self.workers or at_once + at_once // 4 + 1):
                    index = waiting.pop()
                    batch = encode_batch(function, on_death, tasks, [index]).to_json()
                    running[unit.remote(batch, progress)] = index
                done, _ = ray.wait(list(running), num_returns=1, timeout=POLL)
                if amount := ray.get(progress.take.remote()):
                    on_progress(amount)
                for reference in done:
                    index = running.pop(reference)
                    result = _result(ray, reference)
                    if result is None:
                        _count_death(tasks[index], index, deaths, on_death)
                        waiting.append(index)
                    elif result[0] == "error":
                        raise WorkerFailed(result[1])
                    else:
                        yield index, decode_result(function, result[1])
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if progress is not None:
                ray.kill(progress)

    def close(self) -> None:
        """Disconnect from the cluster; shut it down where we started it."""
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False

    def _ray(self) -> Any:
        """The module ray, connected to a cluster."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report leaves this machine
        try:
            import ray
        except ModuleNotFoundError as error:
            raise WorkerFailed(
                "The engine 'ray' needs Ray: pip install 'stemma[ray]' (or choose the engine 'local')."
            ) from error
        if ray.is_initialized():
            return ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            cores = self.workers or default_workers()
            ray.init(address="local", num_cpus=cores, **quiet, **OWN_CLUSTER)
        self._connected = True
        return ray


class _Progress:
    """Sums the progress that units report until it is taken."""

    def __init__(self) -> None:
        self.amount = 0

    def add(self, amount: int) -> None:
        self.amount += amount

    def take(self) -> int:
        amount, self.amount = self.amount, 0
        return amount


def _run_unit(batch: str, progress: Any) -> tuple[str, str]:
    """Runs in a Ray worker: ("done", result as JSON) or ("error", message)."""

    def report(index: int, amount: int) -> None:
        progress.add.remote(amount)

    try:
        ((_, result),) = run_batch(TaskBatch.from_json(batch), report)
    except WorkerFailed as error:
        return "error", str(error)
    return "done", result


def _result(ray: Any, reference: Any) -> tuple[str, str] | None:
    """A task's result, or None where its worker or node died."""
    died = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
    )
    try:
        return ray.get(reference)
    except died:
        return None
    except ray.exceptions.RayError as error:
        raise WorkerFailed(f"Ray could not run a unit: {error}") from error


def _count_death(task: Any, index: int, deaths: list[int], on_death: OnDeath | None) -> None:
    explained = on_death is not None and on_death(task, KILLED)
    deaths[index] = 0 if explained else deaths[index] + 1
    if deaths[index] >= MAX_DEATHS:
        raise WorkerFailed(
            f"{deaths[index]} Ray workers died on the same task. Where Ray reports a lack of memory, use fewer "
            "workers or larger nodes."
        )
