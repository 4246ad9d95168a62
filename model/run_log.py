"""What a run reports while it works: metrics, messages, progress, and its result at the end.

Notable:
- metrics go to a file, one JSON object a line: {"t": unix seconds, "step": int, "metrics": {name: float}}. No server
  is called from here, so none can stop training. A run that resumes logs the steps since its checkpoint again, with
  equal values: readers keep the last line of a step;
- messages go to stderr, and to Dagster where it started the process (DAGSTER_PIPES_CONTEXT is set);
- only rank 0 reports.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from core.files import open_lines, write_json
from core.progress import progress_bar
from model.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from dagster_pipes import PipesContext
    from tqdm import tqdm

DECIDES_NOTHING = "what is reported while a run works"


def is_first_rank() -> bool:
    """Whether this process is rank 0 (torchrun's RANK), or alone."""
    return int(os.environ.get("RANK", "0")) == 0


class RunLog:
    """The log of one run. Both paths are optional: without one, nothing is written to it."""

    def __init__(self, metrics: Path | None = None, result: Path | None = None, enabled: bool | None = None):
        """enabled: whether this process reports anything; None: rank 0 does."""
        self.enabled = is_first_rank() if enabled is None else enabled
        self._metrics_path = Path(metrics) if metrics and self.enabled else None
        self._result_path = Path(result) if result and self.enabled else None
        self._file: IO[str] | None = None
        self._pipes: PipesContext | None = None
        self._bar: tqdm | None = None
        self._system = SystemMetrics()

    def __enter__(self) -> RunLog:
        self._open_pipes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the metrics file and the connection to Dagster."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._pipes is not None:
            self._pipes.close()
            self._pipes = None

    def log(self, step: int, **metrics: float) -> None:
        """Append one line. Names may hold slashes: log(3, **{"system/cpu_utilization_percentage": 50.0})."""
        if self._metrics_path is None or not metrics:
            return
        line: dict[str, Any] = {"t": round(time.time(), 3), "step": int(step)}
        line["metrics"] = {name: float(value) for name, value in metrics.items()}
        try:
            if self._file is None:
                self._file = open_lines(self._metrics_path)
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:  # a log never stops training
            path, self._metrics_path = self._metrics_path, None
            self.message(f"{path}: cannot be written ({error.strerror}). Training goes on without metrics.")

    def log_system(self, step: int) -> None:
        """Log CPU, memory, disk and network use under MLflow's names, at most every ten seconds."""
        if self._metrics_path is not None and (sample := self._system.sample()):
            self.log(step, **sample)

    def message(self, text: str) -> None:
        """One line for the user: on stderr, and in Dagster's log where it started the process."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, file=sys.stderr, flush=True)
        if self._pipes is not None:
            self._pipes.log.info(text)

    def result(self, **numbers: Any) -> None:
        """The run's outcome, once, at its end: to the launcher, and as JSON to the `result` file."""
        if not self.enabled:
            return
        if self._result_path is not None:
            write_json(self._result_path, numbers)
        if self._pipes is not None:
            self._pipes.report_custom_message({"result": numbers})

    @contextmanager
    def progress(
        self, total: int, what: str, unit: str = "step", done: int = 0, bar_format: str | None = None
    ) -> Iterator[tqdm]:
        """A progress bar on stderr, cleared while a message is printed.

        done: how much of it an earlier run did. bar_format: tqdm's, where its default does not fit.
        """
        options = {"initial": done, "disable": not self.enabled, "bar_format": bar_format}
        with progress_bar(total, what, unit, **options) as bar:
            self._bar = bar
            try:
                yield bar
            finally:
                self._bar = None

    def _open_pipes(self) -> None:
        if not (self.enabled and os.environ.get("DAGSTER_PIPES_CONTEXT")):
            return
        try:
            from dagster_pipes import open_dagster_pipes
        except ImportError:
            self.message("dagster-pipes is not installed: Dagster will not receive this run's messages.")
            return
        self._pipes = open_dagster_pipes()
