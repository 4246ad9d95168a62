"""Units as a Slurm job array: one element a unit (or several, where there are more units than an array may have).

Notable: a task goes to `folder` as JSON and its result comes back the same way, by rename; so the folder must be on a
disk that this process and all nodes see by the same path, like the project and its environment. An element that
Slurm no longer knows and that left no result has died: its unit is submitted again. Everything carries one job name,
by which it is found and cancelled, also by the next run after this process was killed. Where and how the jobs run
(partition, account, memory, time) is said by sbatch's own environment variables (SBATCH_PARTITION, …) or `options`.
"""

import hashlib
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

from corpus.engines import OnDeath, Unit, WorkerFailed
from corpus.engines.pool import MAX_DEATHS
from corpus.engines.wire import pack, unpack_result

ROOT = Path(__file__).resolve().parents[2]  # where `python -m corpus.engines.slurm_element` finds this room
MAX_ELEMENTS = 1000  # of an array; Slurm's MaxArraySize is 1001 unless the site has raised it
# The exit code that is reported of an element that is gone; Slurm tells it only to its accounting.
KILLED = -9


@dataclass(frozen=True)
class SlurmEngine:
    """A Slurm cluster, through sbatch, squeue and scancel.

    folder: for tasks, results and logs; emptied at the start of a run. workers: elements that may run at a time.
    options: more arguments of sbatch. poll: seconds between looks at the results; squeue is asked every fifth time.
    silence: seconds after which an element ends itself when this process no longer waits for it (it was killed).
    """

    folder: Path
    workers: int | None = None
    options: tuple[str, ...] = ()
    poll: float = 1.0
    silence: float = 600.0
    apart: bool = True

    @property
    def job_name(self) -> str:
        """Names all jobs of this folder, and no others."""
        place = f"{os.getuid()}:{Path(self.folder).resolve()}"
        return f"stemma-{hashlib.sha256(place.encode()).hexdigest()[:16]}"

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
        """Nothing is kept but the folder: its logs say what the jobs said."""

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

    def sbatch(self, parcels: Path, count: int) -> str:
        """Submit an array of `count` elements over the parcels in a folder; return its job id."""
        logs = self.folder.resolve() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        throttle = f"%{self.workers}" if self.workers else ""
        command = [sys.executable, "-m", "corpus.engines.slurm_element", str(parcels), str(self.silence)]
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
    """One call of run(): which element holds which units, and what has come back."""

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
        self.held: dict[str, list[int]] = {}  # "JOB_ELEMENT" -> its units that have not come back, in order
        self.deaths = [0] * len(tasks)
        self.reached = [0] * len(tasks)  # progress reported so far
        self.beats = self.submitted = 0

    def submit(self, wanted: list[int]) -> None:
        """Send these units out as a new array."""
        from corpus.engines.slurm_element import RESULTS

        (self.engine.folder / RESULTS).mkdir(parents=True, exist_ok=True)
        self._beat()
        parcels = self.engine.folder.resolve() / f"array-{self.submitted}"
        parcels.mkdir()
        count = min(len(wanted), MAX_ELEMENTS)
        shares = [wanted[element::count] for element in range(count)]
        for element, share in enumerate(shares):
            parcel = pack(self.function, self.on_death, self.tasks, share)
            (parcels / f"{element}.json").write_text(parcel.to_json())
        job = self.engine.sbatch(parcels, count)
        self.submitted += 1
        self.held |= {f"{job}_{element}": share for element, share in enumerate(shares)}

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield what comes back until everything has, sending out again what died."""
        looks, suspects = 0, set()
        while self.held:
            self._beat()
            yield from self._collect()
            self._report_progress()
            looks += 1
            if self.held and looks % 5 == 0:
                alive = self.engine.alive()
                gone = set(self.held) - alive
                # Twice: on a network disk a result may show a little later than Slurm forgets its job.
                dead, suspects = gone & suspects, gone
                if dead:
                    yield from self._collect()
                    self._bury(dead & set(self.held))
            if self.held:
                time.sleep(self.engine.poll)

    def _collect(self) -> Iterator[tuple[int, Any]]:
        from corpus.engines.slurm_element import error_file, result_file

        folder = self.engine.folder
        for element, units in list(self.held.items()):
            for unit in list(units):
                if error_file(folder, unit).is_file():
                    raise WorkerFailed(error_file(folder, unit).read_text())
                if not result_file(folder, unit).is_file():
                    break  # an element does its units in order
                self._advance(unit)
                units.remove(unit)
                yield unit, unpack_result(self.function, result_file(folder, unit).read_bytes())
            if not units:
                del self.held[element]

    def _report_progress(self) -> None:
        for units in self.held.values():
            self._advance(units[0])

    def _advance(self, unit: int) -> None:
        """Report how much further a unit has come. One that is done again is silent until it is further."""
        from corpus.engines.slurm_element import progress_file

        file = progress_file(self.engine.folder, unit)
        reached = int(file.read_text()) if file.is_file() else 0
        if reached > self.reached[unit]:
            self.on_progress(reached - self.reached[unit])
            self.reached[unit] = reached

    def _bury(self, elements: set[str]) -> None:
        """Send out again what dead elements held. The first unit of each is the one that it died on."""
        again = []
        for element in sorted(elements):
            units = self.held.pop(element)
            explained = self.on_death is not None and self.on_death(self.tasks[units[0]], KILLED)
            self.deaths[units[0]] = 0 if explained else self.deaths[units[0]] + 1
            if self.deaths[units[0]] >= MAX_DEATHS:
                raise WorkerFailed(
                    f"{MAX_DEATHS} Slurm jobs died on the same task, the last of them {element}. It said: "
                    f"{self._last_words(element)}. Mend that, or give the jobs more memory or time "
                    "(SBATCH_MEM_PER_CPU, SBATCH_TIMELIMIT)."
                )
            again += units
        if again:
            self.submit(sorted(again))

    def _last_words(self, element: str) -> str:
        log = self.engine.folder / "logs" / f"{element}.txt"
        said = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
        return said[-1] if said else "nothing"

    def _beat(self) -> None:
        """Show the elements that somebody waits for them; they end themselves when this stops for long."""
        from corpus.engines.slurm_element import BEAT

        self.beats += 1
        (self.engine.folder / BEAT).write_text(str(self.beats))


def _require_slurm() -> None:
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise WorkerFailed(
            f"The engine 'slurm' needs {', '.join(missing)} on the PATH. Run it on a machine of the cluster, or "
            "choose the engine 'local'."
        )


def _call(*command: str) -> str:
    """Run one of Slurm's commands; return what it printed. Raises WorkerFailed with what it said."""
    for attempt in range(5):  # a busy controller turns callers away
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if command[0] == "sbatch":
            break  # it may have been taken all the same
        time.sleep(2**attempt / 2)
    raise WorkerFailed(f"{command[0]} failed: {done.stderr.strip() or f'exit code {done.returncode}'}.")
