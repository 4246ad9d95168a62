"""What an engine is: something that runs units of work and survives the death of the processes they run in.

A unit is an importable function of one frozen dataclass, `function(task, progress) -> result`, which writes its
files under a temporary name and renames them. Task and result are JSON by their declared types (wire.py).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from core.errors import RunError

DECIDES_NOTHING = "where the units run"

Unit = Callable[[Any, Callable[[int], None]], Any]
OnDeath = Callable[[Any, int], bool]


class WorkerFailed(RunError):
    """A task raised, or killed every worker that took it. The message says which and why."""


class Engine(Protocol):
    """Runs units."""

    @property
    def isolated(self) -> bool:
        """Whether units run in processes of their own, so that what a page may use can be limited."""
        ...

    def run(
        self,
        function: Unit,
        tasks: Sequence[Any],
        on_progress: Callable[[int], None] = ...,
        on_death: OnDeath | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) as the tasks end, in any order; raise WorkerFailed.

        `on_progress(amount)` is called in the caller's process with what the units report. `on_death(task, exit code)`
        is called on the machine of a unit whose process died, before the unit is retried; it returns True where the
        cause is known and will not recur, and such a death does not count. Leaving the iterator, by its end or an
        exception, leaves no process, task or job of a unit behind.
        """
        ...

    def close(self) -> None:
        """Release what the engine keeps between two runs. It may be run again."""
        ...
