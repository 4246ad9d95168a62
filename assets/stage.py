"""What a stage of the chain is to the code that runs it: a body, the evidence that it shows, and how the UI shows it.

An asset file says only what its stage does; what it depends on is declared in dvc.yaml, and what happens around the
body in assets/materialize.py. This file imports no Dagster, so that the command line can ask about stages without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError

if TYPE_CHECKING:
    from dagster import AssetExecutionContext

    from resources.engine import ExecutionEngine
    from resources.launch import TrainingLauncher
    from resources.tracked_run import TrackedRun
    from resources.workspace import Workspace

DECIDES_NOTHING = "what a stage gets and gives, not what it does"


@dataclass
class Evidence:
    """What a stage reports about its result: numbers, plots (PNG bytes) and Markdown tables by title, checks by name.

    `files` are named with their paths (relative to the project) and are not part of the version.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    plot: bytes | None = None
    more_plots: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    check_notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRun:
    """What a stage's body is handed: its settings, its inputs, a folder to fill and a folder to resume from."""

    name: str
    partition: str | None
    entries: tuple[str, ...]  # the modules that dvc.yaml names as doing the work
    params: dict[str, Any]
    inputs: dict[str, Path | list[Path]]  # upstream asset -> its folder, or its folders, one a crawl
    out: Path  # to be filled; does not exist yet
    work: Path  # survives a crash; the same inputs find it again
    workspace: Workspace
    context: AssetExecutionContext
    launcher: TrainingLauncher
    engine: ExecutionEngine  # where work units run
    tracked: TrackedRun | None  # the MLflow run

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.workspace.root

    @property
    def crawl(self) -> str:
        """The partition of a stage that has one."""
        if self.partition is None:
            raise ValueError(f"{self.name} has no partitions")
        return self.partition

    def folder(self, asset: str) -> Path:
        """The folder of an input that is one."""
        (folder,) = self.folders(asset)
        return folder

    def folders(self, asset: str) -> list[Path]:
        """The folders of an input, one or one a crawl."""
        found = self.inputs[asset]
        return found if isinstance(found, list) else [found]

    def launch(self, module: str, out: Path | None = None, **more_inputs: Path) -> dict[str, Any]:
        """Run `python -m module` on this stage's settings and inputs as a supervised process; return its result.

        Raises ConfigError for a module that dvc.yaml does not name, for its code would not count as the stage's.
        """
        if module not in self.entries:
            raise ConfigError(
                f"dvc.yaml, stage '{self.name}': name {module} among its entries; the stage runs it."
            )
        work = self.work / module.rpartition(".")[2]
        config = {
            "params": self.params,
            "inputs": {name: _as_text(paths) for name, paths in {**self.inputs, **more_inputs}.items()},
            "out": str(out or self.out),
            "work": str(work),
            "metrics": str(self.tracked.metrics_path) if self.tracked else None,
        }
        return self.launcher.run(self.context, module, config, work)


def _as_text(paths: Path | list[Path]) -> str | list[str]:
    return [str(path) for path in paths] if isinstance(paths, list) else str(paths)


@dataclass(frozen=True)
class Stage:
    """A stage's body and how it shows in the UI. What it depends on is declared in dvc.yaml and nowhere else."""

    body: Callable[[StageRun], Evidence]
    group: str
    kinds: frozenset[str]
    checks: Mapping[str, str]  # blocking checks: name -> what it means
    tracked: bool  # has an MLflow run
    registered: bool  # is a model in MLflow's registry
    pool: str | None

    @property
    def name(self) -> str:
        return self.body.__name__


def stage(
    *,
    group: str,
    kinds: set[str],
    checks: Mapping[str, str] | None = None,
    tracked: bool = False,
    registered: bool = False,
    pool: str | None = None,
) -> Callable[[Callable[[StageRun], Evidence]], Stage]:
    """Mark a function as the body of the stage of the same name in dvc.yaml."""
    return lambda body: Stage(body, group, frozenset(kinds), checks or {}, tracked, registered, pool)
