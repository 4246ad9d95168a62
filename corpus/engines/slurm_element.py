"""What one element of the Slurm array runs: `python -m corpus.engines.slurm_element PARCELS SILENCE`.

It does the units of its parcel in order, in a child that may be killed, and leaves each result in the run's folder.
Run again for any reason (Slurm requeues jobs of lost nodes) it goes on behind the results that stand there.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from corpus.engines import WorkerFailed
from corpus.engines.wire import Parcel, run_parcel

RESULTS = "results"
BEAT = "beat"


def result_file(folder: Path, unit: int) -> Path:
    """Where a unit's result stands when it is done."""
    return folder / RESULTS / f"{unit}.json"


def error_file(folder: Path, unit: int) -> Path:
    """Where the sentence stands that says why a unit cannot be done."""
    return folder / RESULTS / f"{unit}.error"


def progress_file(folder: Path, unit: int) -> Path:
    """Where a unit's progress so far stands."""
    return folder / RESULTS / f"{unit}.progress"


def _watch_beat(file: Path, silence: float) -> None:
    """End this process, and by that its child, when the file has not changed for `silence` seconds."""
    seen, since = None, time.monotonic()
    while True:
        now = file.read_text() if file.is_file() else None
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > silence:
            print("The run that wants these results has ended, so this job ends too.", flush=True)
            os._exit(4)
        time.sleep(min(15.0, silence / 4))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(text)
    partial.replace(path)


def run_element(parcels: Path, element: int, silence: float) -> int:
    """Do the units of one parcel; return the exit code. Ends early when nobody has waited for `silence` seconds."""
    folder = parcels.parent
    threading.Thread(target=_watch_beat, args=(folder / BEAT, silence), daemon=True).start()
    parcel = Parcel.from_json((parcels / f"{element}.json").read_bytes())
    todo = [at for at, unit in enumerate(parcel.indices) if not result_file(folder, unit).is_file()]
    parcel = replace(
        parcel,
        indices=tuple(parcel.indices[at] for at in todo),
        tasks=tuple(parcel.tasks[at] for at in todo),
    )
    reached = dict.fromkeys(parcel.indices, 0)

    def progress(unit: int, amount: int) -> None:
        reached[unit] += amount
        _write(progress_file(folder, unit), str(reached[unit]))

    done = 0
    try:
        for unit, result in run_parcel(parcel, progress):
            _write(result_file(folder, unit), result)
            done += 1
    except WorkerFailed as error:
        _write(error_file(folder, parcel.indices[done]), str(error))
        print(error, flush=True)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the element that Slurm names in SLURM_ARRAY_TASK_ID."""
    parcels, silence = sys.argv[1:] if arguments is None else arguments
    return run_element(Path(parcels), int(os.environ["SLURM_ARRAY_TASK_ID"]), float(silence))


if __name__ == "__main__":
    sys.exit(main())
