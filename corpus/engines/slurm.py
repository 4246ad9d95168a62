"""Units as a Slurm job array: one element a unit (or several, where there are more units than an array may have).

Notable: a task is written to `folder` as JSON and its result comes back the same way, by rename; so the folder must be
on a disk that this process and all nodes see by the same path, like the project and its environment. An element that
Slurm no longer knows and that left no result has died: its unit is submitted again. All jobs carry one name, by which
they are found and cancelled, also by the next run after this process was killed. Where and how the jobs run
(partition, account, memory, time) is set by sbatch's own environment variables (SBATCH_PARTITION, …) or `options`.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.hashing import text_sha256
from corpus.engines.engine import OnDeath, Unit, WorkerFailed
from corpus.engines.pool import MAX_DEATHS
from corpus.engines.slurm_element import HEARTBEAT, RESULTS, error_file, progress_file, result_file
from corpus.engines.wire import decode_result, encode_batch

DECIDES_NOTHING = "where the units run"

ROOT = (
    Path(__file__).resolve().parents[2]
)  # where `python -m corpus.engines.slurm_element` finds this package
MAX_ELEMENTS = 1000  # of an array; Slurm's MaxArraySize is 1001 unless the site has raised it
KILLED = -9  # exit code reported for a dead element: Slurm gives the real one only to its accounting
CHECK_EVERY = 5  # looks for results between two calls of squeue


@dataclass(frozen=True)
class SlurmEngine:
    """A Slurm cluster, through sbatch, squeue and scancel.

    folder: for tasks, results and logs; emptied at the start of a run. workers: elements that may run at a time.
    options: more arguments of sbatch. poll: seconds between looks at the results; squeue is called every fifth time.
    heartbeat_timeout: seconds after which an element ends itself when this process no longer waits (it was killed).
    """

    folder: Path
    workers: int | None = None
    options: tuple[str, ...] = ()
    poll: float = 1.0
    heartbeat_timeout: float = 600.0
    isolated: bool = True

    @property
    def job_name(self) -> str:
        """The name of all jobs of this folder, and of no others."""
        return f"stemma-{text_sha256(f'{os.getuid()}:{Path(self.folder).resolve()}')[:16]}"

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
        _require_slurm()
        self._cancel()  # what a killed run left behind
        shutil.rmtree(self.folder, ignore_errors=True)
        run = _Run(self, function, tasks, on_progress, on_death)
        try:
            run.submit(list(range(len(tasks))))
            yield from run.results()
        finally:
            self._cancel()

    def close(self) -> None:
        """Nothing to release; the folder stays, with the logs of the jobs."""

    def _cancel(self) -> None:
        """End all jobs of this folder, and wait until they have ended."""
        _call("scancel", f"--name={self.job_name}")
        deadline = time.monotonic() + 60
        while self.alive() and time.monotonic() < deadline:
            time.sleep(min(self.poll, 0.5))

    def alive(self) -> set[str]:
        """The elements that Slurm still holds, waiting or running: "JOB_ELEMENT"."""
        listed = _call("squeue", "--noheader", "--array", f"--name={self.job_name}", "--format=%F_%K")
        return set(listed.split())

    def sbatch(self, batches: Path, count: int) -> str:
        """Submit an array of `count` elements over the batches in a folder; return its job id."""
        logs = self.folder.resolve() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        throttle = f"%{self.workers}" if self.workers else ""
        element = [sys.executable, "-m", "corpus.engines.slurm_element"]
        command = [*element, str(batches), str(self.heartbeat_timeout)]
        printed = _call(
            "sbatch",
            "--parsable",
            f"--job-name={self.job_name}",
            f"--array=0-{count - 1}{throttle}",
            "--ntasks=1",
            f"--chdir={ROOT}",
            f"--output={logs}/%A_%a.txt",
            "--open-mode=append",
            *self.options,
            f"--wrap=exec {shlex.join(command)}",
        )
        return printed.strip().partition(";")[0]


class _Run:
    """One call of run(): which element holds which units, and which results are here."""

    def __init__(
        self,
        engine: SlurmEngine,
        function: Unit,
        tasks: Sequence[Any],
        on_progress: Callable[[int], None],
        on_death: OnDeath | None,
    ):
        self.engine, self.function, self.tasks = engine, function, tasks
        self.on_progress, self.on_death = on_progress, on_death
        self.held: dict[str, list[int]] = {}  # "JOB_ELEMENT" -> its units without result, in order
        self.deaths = [0] * len(tasks)
        self.reached = [0] * len(tasks)  # progress reported so far
        self.heartbeats = self.submitted = 0

    def submit(self, wanted: list[int]) -> None:
        """Submit these units as a new array."""
        (self.engine.folder / RESULTS).mkdir(parents=True, exist_ok=True)
        self._write_heartbeat()
        batches = self.engine.folder.resolve() / f"array-{self.submitted}"
        batches.mkdir()
        count = min(len(wanted), MAX_ELEMENTS)
        shares = [wanted[element::count] for element in range(count)]
        for element, share in enumerate(shares):
            batch = encode_batch(self.function, self.on_death, self.tasks, share)
            (batches / f"{element}.json").write_text(batch.to_json())
        job = self.engine.sbatch(batches, count)
        self.submitted += 1
        self.held |= {f"{job}_{element}": share for element, share in enumerate(shares)}

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield results until all are here, submitting again the units of dead elements."""
        looks, suspects = 0, set[str]()
        while self.held:
            self._write_heartbeat()
            yield from self._collect()
            self._report_progress()
            looks += 1
            if self.held and looks % CHECK_EVERY == 0:
                missing = set(self.held) - self.engine.alive()
                # Twice: on a network disk a result may appear a little later than Slurm forgets its job.
                dead, suspects = missing & suspects, missing
                if dead:
                    yield from self._collect()
                    self._resubmit(dead & set(self.held))
            if self.held:
                time.sleep(self.engine.poll)

    def _collect(self) -> Iterator[tuple[int, Any]]:
        folder = self.engine.folder
        for element, units in list(self.held.items()):
            for unit in list(units):
                if error_file(folder, unit).is_file():
                    raise WorkerFailed(error_file(folder, unit).read_text())
                if not result_file(folder, unit).is_file():
                    break  # an element runs its units in order
                self._advance(unit)
                units.remove(unit)
                yield unit, decode_result(self.function, result_file(folder, unit).read_bytes())
            if not units:
                del self.held[element]

    def _report_progress(self) -> None:
        for units in self.held.values():
            self._advance(units[0])

    def _advance(self, unit: int) -> None:
        """Report a unit's progress since the last report; a retried unit's only once it is beyond that."""
        file = progress_file(self.engine.folder, unit)
        reached = int(file.read_text()) if file.is_file() else 0
        if reached > self.reached[unit]:
            self.on_progress(reached - self.reached[unit])
            self.reached[unit] = reached

    def _resubmit(self, elements: set[str]) -> None:
        """Submit the units of dead elements again. The first unit of each is the one that it died on."""
        again = []
        for element in sorted(elements):
            units = self.held.pop(element)
            explained = self.on_death is not None and self.on_death(self.tasks[units[0]], KILLED)
            self.deaths[units[0]] = 0 if explained else self.deaths[units[0]] + 1
            if self.deaths[units[0]] >= MAX_DEATHS:
                raise WorkerFailed(
                    f"{MAX_DEATHS} Slurm jobs died on the same task, the last of them {element}. The last line of its "
                    f"log is: {self._last_log_line(element)}. Fix that, or give the jobs more memory or time "
                    "(SBATCH_MEM_PER_CPU, SBATCH_TIMELIMIT)."
                )
            again += units
        if again:
            self.submit(sorted(again))

    def _last_log_line(self, element: str) -> str:
        log = self.engine.folder / "logs" / f"{element}.txt"
        lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
        return lines[-1] if lines else "(empty)"

    def _write_heartbeat(self) -> None:
        """Show the elements that this process waits for them; they end themselves when it has not for long."""
        self.heartbeats += 1
        (self.engine.folder / HEARTBEAT).write_text(str(self.heartbeats))


def _require_slurm() -> None:
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise WorkerFailed(
            f"The engine 'slurm' needs {', '.join(missing)} on the PATH. Run it on a machine of the cluster, or "
            "choose the engine 'local'."
        )


def _call(*command: str) -> str:
    """Run one of Slurm's commands; return its output. Raises WorkerFailed with its error output."""
    for attempt in range(5):  # a busy controller refuses connections
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if command[0] == "sbatch":
            break  # the job may have been accepted all the same
        time.sleep(2**attempt / 2)
    raise WorkerFailed(f"{command[0]} failed: {done.stderr.strip() or f'exit code {done.returncode}'}.")
