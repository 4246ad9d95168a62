"""How a unit travels to another machine and its result back: names of functions, and JSON by declared types.

No pickle: what stands on a shared disk can be read by people, and by a worker nothing but data is read from it.
"""

import importlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_type_hints

from corpus.engines import OnDeath, Unit
from corpus.engines.pool import run_tasks


@dataclass(frozen=True)
class Parcel:
    """Tasks of one function, as they travel. `indices` are the tasks' places in the caller's list."""

    function: str  # "module:name"
    on_death: str | None
    task_type: str
    indices: tuple[int, ...]
    tasks: tuple[str, ...]  # JSON
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))  # where the caller's modules are
    folder: str = field(default_factory=os.getcwd)  # what relative paths are relative to

    def to_json(self) -> str:
        """As one JSON document."""
        import json

        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Parcel":
        """What to_json wrote."""
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_json(text)


def pack(function: Unit, on_death: OnDeath | None, tasks: Sequence[Any], indices: Sequence[int]) -> Parcel:
    """The tasks at `indices`, to be run elsewhere. All tasks are of one dataclass."""
    from pydantic import TypeAdapter

    kind = type(tasks[indices[0]])
    adapter = TypeAdapter(kind)
    return Parcel(
        name_of(function),
        name_of(on_death) if on_death else None,
        name_of(kind),
        tuple(indices),
        tuple(adapter.dump_json(tasks[index]).decode() for index in indices),
    )


def run_parcel(
    parcel: Parcel, on_progress: Callable[[int, int], None] = lambda index, amount: None
) -> Iterator[tuple[int, str]]:
    """Run a parcel's tasks one after another in a child of this process; yield (index, result as JSON).

    `on_progress(index, amount)` is called in this process. Raises WorkerFailed.
    """
    sys.path += [folder for folder in parcel.path if folder not in sys.path]
    os.chdir(parcel.folder)
    todo = deque(parcel.indices)  # one worker takes them in order, so the first is the one that reports

    def report(amount: int) -> None:
        on_progress(todo[0], amount)

    def death(task: tuple[str, str, str], exit_code: int) -> bool:
        return bool(parcel.on_death) and by_name(parcel.on_death)(_task(*task[1:]), exit_code)

    # As text, so that this process, which only watches, need not load what the units do.
    tasks = [(parcel.function, parcel.task_type, task) for task in parcel.tasks]
    for place, result in run_tasks(_run_packed, tasks, 1, report, death):
        todo.popleft()
        yield parcel.indices[place], result


def _run_packed(packed: tuple[str, str, str], progress: Callable[[int], None]) -> str:
    function = by_name(packed[0])
    return _result_type(function).dump_json(function(_task(*packed[1:]), progress)).decode()


def _task(kind: str, text: str) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(by_name(kind)).validate_json(text)


def unpack_result(function: Unit, text: str | bytes) -> Any:
    """A result as the function returned it."""
    return _result_type(function).validate_json(text)


def _result_type(function: Unit) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(get_type_hints(function).get("return", Any))


def name_of(thing: Any) -> str:
    """The name by which another process can import a function or class: "corpus.unit:clean_unit"."""
    name = f"{thing.__module__}:{thing.__qualname__}"
    if "<" in name or thing.__module__ == "__main__" or by_name(name) is not thing:
        raise ValueError(f"{name} cannot be imported by name, so it cannot run on another machine.")
    return name


def by_name(name: str) -> Any:
    """What name_of named."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
