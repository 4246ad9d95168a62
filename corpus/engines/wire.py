"""Tasks and results as sent between machines: functions by their import names, and JSON by declared types.

No pickle: people can read what is on the shared disk, and a worker reads nothing but data from it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

from corpus.engines.engine import OnDeath, Unit
from corpus.engines.pool import run_tasks

if TYPE_CHECKING:
    from pydantic import TypeAdapter

DECIDES_NOTHING = "where the units run"


@dataclass(frozen=True)
class TaskBatch:
    """Tasks of one function, as sent to another machine. `indices` are the tasks' positions in the caller's list."""

    function: str  # "module:name"
    on_death: str | None
    task_type: str
    indices: tuple[int, ...]
    tasks: tuple[str, ...]  # JSON
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))  # where the caller finds modules
    folder: str = field(default_factory=os.getcwd)  # what relative paths are relative to

    def to_json(self) -> str:
        """As one JSON document."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> TaskBatch:
        """The batch that to_json wrote."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_json(text)


def encode_batch(
    function: Unit, on_death: OnDeath | None, tasks: Sequence[Any], indices: Sequence[int]
) -> TaskBatch:
    """The tasks at `indices`, to be run on another machine. All tasks are of one dataclass."""
    from pydantic import TypeAdapter

    kind = type(tasks[indices[0]])
    adapter = TypeAdapter(kind)
    return TaskBatch(
        name_of(function),
        name_of(on_death) if on_death else None,
        name_of(kind),
        tuple(indices),
        tuple(adapter.dump_json(tasks[index]).decode() for index in indices),
    )


def run_batch(
    batch: TaskBatch, on_progress: Callable[[int, int], None] = lambda index, amount: None
) -> Iterator[tuple[int, str]]:
    """Run a batch's tasks one after another in a child of this process; yield (index, result as JSON).

    `on_progress(index, amount)` is called in this process. Raises WorkerFailed.
    """
    sys.path += [folder for folder in batch.path if folder not in sys.path]
    os.chdir(batch.folder)
    todo = deque(batch.indices)  # one worker runs them in order, so the first is the one that reports

    def report(amount: int) -> None:
        on_progress(todo[0], amount)

    def death(task: tuple[str, str, str], exit_code: int) -> bool:
        return batch.on_death is not None and by_name(batch.on_death)(_decode_task(*task[1:]), exit_code)

    # As text, so that this process, which only watches, need not load the units' modules.
    tasks = [(batch.function, batch.task_type, task) for task in batch.tasks]
    for place, result in run_tasks(_run_encoded, tasks, 1, report, death):
        todo.popleft()
        yield batch.indices[place], result


def _run_encoded(encoded: tuple[str, str, str], progress: Callable[[int], None]) -> str:
    function = by_name(encoded[0])
    return _result_type(function).dump_json(function(_decode_task(*encoded[1:]), progress)).decode()


def _decode_task(kind: str, text: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(by_name(kind)).validate_json(text)


def decode_result(function: Unit, text: str | bytes) -> Any:
    """A result as the function returned it."""
    return _result_type(function).validate_json(text)


def _result_type(function: Unit) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(get_type_hints(function).get("return", Any))


def name_of(thing: Any) -> str:
    """The name by which another process can import a function or class: "corpus.unit:clean_unit"."""
    name = f"{thing.__module__}:{thing.__qualname__}"
    if "<" in name or thing.__module__ == "__main__" or by_name(name) is not thing:
        raise ValueError(f"{name} cannot be imported by name, so it cannot run on another machine.")
    return name


def by_name(name: str) -> Any:
    """The function or class that name_of named."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
