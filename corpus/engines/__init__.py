"""Where the units of work run: processes of this machine, Ray, or a Slurm array. The bytes are the same anywhere.

A unit is an importable function of one frozen dataclass, `function(task, progress) -> result`, which writes its
files beside their place and renames them. Task and result can be JSON by their declared types (corpus/engines/wire.py).
On every engine the unit runs in a child process that we start and watch (corpus/engines/pool.py), so that a page may
kill it: the engine's own worker, or the node's, never dies of one. Ray and Slurm need a folder that all nodes share.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

Unit = Callable[[Any, Callable[[int], None]], Any]
OnDeath = Callable[[Any, int], bool]
ENGINES = ("local", "ray", "slurm")


class WorkerFailed(RuntimeError):
    """A task raised, or killed every worker that took it. The message says which and why."""


class Engine(Protocol):
    """Runs units. `apart` says whether they run in processes of their own (then pages can be limited)."""

    apart: bool

    def run(
        self,
        function: Unit,
        tasks: Sequence[Any],
        on_progress: Callable[[int], None] = ...,
        on_death: OnDeath | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as the tasks end, in any order; raise WorkerFailed.

        `on_progress(amount)` is called here with what the units report. `on_death(task, exit code)` is called
        beside the unit, which may be on another machine, before it is done again; True says that the cause is
        known and will not return, and such a death does not count. Leaving the iterator, by its end or an
        exception, leaves no unit's process, task or job behind.
        """
        ...

    def close(self) -> None:
        """End what the engine keeps between two runs. It may be run again."""
        ...


def choose(engine: str | Engine, work: Path, workers: int | None = None) -> Engine:
    """The engine of that name. `work`: a folder for its own files, shared by all nodes. `workers`: units at a
    time (None: as many as there are cores; on Slurm, as many as it gives). Raises ValueError with a sentence."""
    if not isinstance(engine, str):
        return engine
    if engine not in ENGINES:
        raise ValueError(f"There is no engine '{engine}'. Choose one of: {', '.join(ENGINES)}.")
    if engine == "local":
        from corpus.engines.pool import LocalEngine

        return LocalEngine(workers)
    if workers is not None and workers < 1:
        raise ValueError(f"The engine '{engine}' needs at least one worker; it was given {workers}.")
    if engine == "ray":
        from corpus.engines.ray_engine import RayEngine

        return RayEngine(workers)
    from corpus.engines.slurm import SlurmEngine

    return SlurmEngine(work / "slurm", workers)
