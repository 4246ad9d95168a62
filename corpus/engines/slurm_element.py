"""What one element of the Slurm array runs: `python -m corpus.engines.slurm_element BATCHES TIMEOUT`.

It runs the units of its batch in order, in a child that may be killed, and writes each result to the run's folder.
When it is run again (Slurm requeues jobs of lost nodes) it continues behind the results that are there.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.files import write_atomically
from corpus.engines.engine import WorkerFailed
from corpus.engines.wire import TaskBatch, run_batch

DECIDES_NOTHING = "where the units run"

RESULTS = "results"
HEARTBEAT = "heartbeat"


def result_file(folder: Path, unit: int) -> Path:
    """The result of a finished unit."""
    return folder / RESULTS / f"{unit}.json"


def error_file(folder: Path, unit: int) -> Path:
    """The message of a unit that failed."""
    return folder / RESULTS / f"{unit}.error"


def progress_file(folder: Path, unit: int) -> Path:
    """A unit's progress so far."""
    return folder / RESULTS / f"{unit}.progress"


def _watch_heartbeat(file: Path, timeout: float) -> None:
    """End this process, and by that its child, when the file has not changed for `timeout` seconds."""
    seen, since = None, time.monotonic()
    while True:
        now = file.read_text() if file.is_file() else None
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > timeout:
            print("The run that wants these results has ended, so this job ends too.", flush=True)
            os._exit(4)
        time.sleep(min(15.0, timeout / 4))


def run_element(batches: Path, element: int, timeout: float) -> int:
    """Run the units of one batch; return the exit code. Ends early when no heartbeat came for `timeout` seconds."""
    folder = batches.parent
    threading.Thread(target=_watch_heartbeat, args=(folder / HEARTBEAT, timeout), daemon=True).start()
    batch = TaskBatch.from_json((batches / f"{element}.json").read_bytes())
    todo = [at for at, unit in enumerate(batch.indices) if not result_file(folder, unit).is_file()]
    batch = replace(
        batch,
        indices=tuple(batch.indices[at] for at in todo),
        tasks=tuple(batch.tasks[at] for at in todo),
    )
    reached = dict.fromkeys(batch.indices, 0)

    def progress(unit: int, amount: int) -> None:
        reached[unit] += amount
        write_atomically(progress_file(folder, unit), str(reached[unit]))

    done = 0
    try:
        for unit, result in run_batch(batch, progress):
            write_atomically(result_file(folder, unit), result)
            done += 1
    except WorkerFailed as error:
        write_atomically(error_file(folder, batch.indices[done]), str(error))
        print(error, flush=True)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the element that Slurm names in SLURM_ARRAY_TASK_ID."""
    batches, timeout = sys.argv[1:] if arguments is None else arguments
    return run_element(Path(batches), int(os.environ["SLURM_ARRAY_TASK_ID"]), float(timeout))


if __name__ == "__main__":
    sys.exit(main())
