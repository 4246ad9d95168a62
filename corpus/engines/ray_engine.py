"""Units on Ray Core (extra `[ray]`): one Ray task a unit, each in a child of the Ray worker that may be killed.

Joins the cluster that RAY_ADDRESS names, else starts Ray on this machine for the time of the run: without dashboard
and usage reports, on the loopback address. A task whose Ray worker or node died is submitted again.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from corpus.engines import OnDeath, Unit, WorkerFailed
from corpus.engines.pool import MAX_DEATHS, default_workers
from corpus.engines.wire import Parcel, pack, run_parcel, unpack_result

POLL = 0.5  # seconds between looks at the progress
ALONE = {  # a Ray that we start: small, for the work goes through files, and seen by this machine only
    "include_dashboard": False,
    "object_store_memory": 100 << 20,  # bytes
    "_node_ip_address": "127.0.0.1",
}
KILLED = -9  # the exit code that is reported of a Ray worker that is gone


@dataclass
class RayEngine:
    """Ray Core. `workers`: units at a time (None: as many as the cluster has cores)."""

    workers: int | None = None
    apart: bool = True
    _ours: bool = False  # whether we started or joined Ray, and so leave it

    def run(
        self,
        function: Unit,
        tasks: Sequence[Any],
        on_progress: Callable[[int], None] = lambda amount: None,
        on_death: OnDeath | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """See corpus.engines.Engine."""
        if not tasks:
            return
        ray = self._ray()
        running: dict[Any, int] = {}  # Ray's reference to the result -> unit
        told = None
        try:
            told = ray.remote(num_cpus=0)(_Told).remote()
            unit = ray.remote(num_cpus=1, max_retries=0)(_run_unit)
            at_once = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            waiting, deaths = list(range(len(tasks)))[::-1], [0] * len(tasks)
            while waiting or running:
                # A few more than can run, so that a worker that is done finds its next.
                while waiting and len(running) < (self.workers or at_once + at_once // 4 + 1):
                    index = waiting.pop()
                    running[unit.remote(pack(function, on_death, tasks, [index]).to_json(), told)] = index
                done, _ = ray.wait(list(running), num_returns=1, timeout=POLL)
                if amount := ray.get(told.take.remote()):
                    on_progress(amount)
                for reference in done:
                    index = running.pop(reference)
                    result = _result(ray, reference)
                    if result is None:
                        _bury(tasks[index], index, deaths, on_death)
                        waiting.append(index)
                    elif result[0] == "error":
                        raise WorkerFailed(result[1])
                    else:
                        yield index, unpack_result(function, result[1])
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if told is not None:
                ray.kill(told)

    def close(self) -> None:
        """Leave the cluster; end it where it is ours."""
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False

    def _ray(self) -> Any:
        """Ray, started or joined."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report leaves this machine
        try:
            import ray
        except ModuleNotFoundError as error:
            raise WorkerFailed(
                "The engine 'ray' needs Ray: pip install 'stemma[ray]' (or choose the engine 'local')."
            ) from error
        if ray.is_initialized():
            return ray
        quiet = {"log_to_driver": False, "logging_level": "warning"}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            cores = self.workers or default_workers()
            ray.init(address="local", num_cpus=cores, **quiet, **ALONE)
        self._ours = True
        return ray


class _Told:
    """Sums what the units report until it is asked for."""

    def __init__(self) -> None:
        self.amount = 0

    def add(self, amount: int) -> None:
        self.amount += amount

    def take(self) -> int:
        amount, self.amount = self.amount, 0
        return amount


def _run_unit(parcel: str, told: Any) -> tuple[str, str]:
    """Runs in a Ray worker: ("done", result as JSON) or ("error", why)."""
    try:
        ((_, result),) = run_parcel(
            Parcel.from_json(parcel), lambda index, amount: told.add.remote(amount) and None
        )
    except WorkerFailed as error:
        return "error", str(error)
    return "done", result


def _result(ray: Any, reference: Any) -> tuple[str, str] | None:
    """What a task left, or None where its worker or node died."""
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


def _bury(task: Any, index: int, deaths: list[int], on_death: OnDeath | None) -> None:
    explained = on_death is not None and on_death(task, KILLED)
    deaths[index] = 0 if explained else deaths[index] + 1
    if deaths[index] >= MAX_DEATHS:
        raise WorkerFailed(
            f"{deaths[index]} Ray workers died on the same task. Where Ray says that memory is short, use fewer "
            "workers or larger nodes."
        )
