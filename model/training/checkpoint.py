"""Checkpoints that are complete or absent, that know which run they belong to, and that no step waits for.

Layout: WORK/checkpoints/step-00000300/ holds the engine's files, curve.jsonl and checkpoint.json. Notable:
- the loop hands over a copy in memory and continues training; a thread writes it, flushes it to disk and renames the
  folder from a name ending in .partial: a process killed at any moment leaves the previous checkpoint intact. At most
  one is being written; its failure stops the run at the next step;
- each process writes its own files from its own thread and then reports them in a small file; rank 0 completes the
  folder when it has the hashes of all ranks. Nothing is collective, so no step can get in between;
- checkpoint.json holds the sha256 of every file, verified before anything is read: a truncated or altered checkpoint
  is rejected, and the previous one is used;
- it also holds the identity of the run (parent model, data, code, configuration): resuming from a checkpoint of
  another run is refused with a sentence that names what differs. The number of processes may differ;
- kept are the newest, the newest `keep` periodic ones and the best. A rollback uses periodic ones only, so that a
  checkpoint saved because the user stopped the run changes no number of it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from core.files import write_json
from model.run_log import RunLog
from model.training.checkpoint_files import (
    NAME,
    PARTIAL,
    REMOVING,
    CheckpointError,
    damage,
    differences,
    flush,
    flushed_sha256,
    rank_prefix,
    read_record,
    remove_checkpoint,
    write_record,
)

if TYPE_CHECKING:
    from model.training.world import World

TIMEOUT = 600.0  # seconds that rank 0 waits for the files of the others
TIMEOUT_ON_ERROR = 10.0  # seconds of it that are left once the run is ending by an error


class Snapshot(Protocol):
    """A copy in memory of what one process has to save (model/training/snapshot.py)."""

    def write(self, folder: Path) -> None:
        """Write it into `folder`, as files named rank-00000… by this rank's number; called from a thread."""


class Checkpoints:
    """The checkpoints of one run, in WORK/checkpoints."""

    def __init__(
        self,
        work: Path,
        identity: dict[str, Any],
        world: World,
        log: RunLog,
        keep: int = 2,
        computed: dict[str, Any] | None = None,
    ):
        """identity: what must be equal to resume; computed: what changes only the last digits (number of ranks …)."""
        self.folder = Path(work) / "checkpoints"
        # Through JSON and back, so that what is compared is what was stored.
        self.identity = json.loads(json.dumps(identity, sort_keys=True))
        self.computed = json.loads(json.dumps((computed or {}) | {"ranks": world.size}))
        self.world, self.log, self.keep = world, log, keep
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._ending = threading.Event()

    def save(
        self,
        step: int,
        state: dict[str, Any],
        take: Callable[[], Snapshot],
        *,
        periodic: bool = True,
        score: float | None = None,
        texts: dict[str, str] | None = None,
    ) -> None:
        """Start writing the checkpoint of `step`, after the previous one is written; every rank calls it.

        take() copies this rank's state. score: a metric of this step, lowest is best. texts: small files to add, by
        name. An error in the thread shows in `failed` and is raised by `settle`.
        """
        self._join()
        if self.failed:  # the other ranks learn it from the sum in the next step
            return
        record = {"step": step, "periodic": periodic, "score": score, "state": state}
        record |= {"identity": self.identity, "computed": self.computed}
        # Deep-copied through JSON: the loop keeps changing its state.
        arguments = (step, take(), texts or {}, json.loads(json.dumps(record)))
        self._writer = threading.Thread(target=self._write, args=arguments, name=f"checkpoint {step}")
        self._writer.daemon = True
        self._writer.start()

    @property
    def failed(self) -> bool:
        """Whether this rank could not write its last checkpoint."""
        return self._error is not None

    def settle(self) -> None:
        """Wait until the checkpoint that is being written is complete; every rank calls it.

        Raises CheckpointError where it could not be written; earlier checkpoints stay intact.
        """
        self._join()
        if self.world.sum(float(self.failed))[0]:
            self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the error of this process, or one that refers to another process."""
        raise self._error or CheckpointError(
            "Another process could not write its part of a checkpoint; see its own message."
        )

    def close(self) -> None:
        """Wait for the writer, at most TIMEOUT_ON_ERROR for other ranks' files: the run may be ending by an error."""
        self._ending.set()
        self._join()

    def latest(self, periodic: bool = False) -> tuple[Path, dict[str, Any]] | None:
        """The newest complete checkpoint (or periodic one) and its state; None where there is none.

        Every rank calls it, while no checkpoint is being written: what killed runs left incomplete is removed, and
        each rank verifies its share of the files. Raises CheckpointError where the checkpoint belongs to another
        run, or where all are damaged.
        """
        if self.world.rank == 0:
            self._clear()
        self.world.barrier()
        rejected = 0
        for folder in reversed(self.steps()):
            if self._is_damaged(folder):
                self.log.message(f"{folder}: rejected, {damage(folder)}. Trying the previous one.")
                rejected += 1
                continue
            record = read_record(folder)
            assert record is not None  # it is not damaged
            self._check_identity(folder, record)
            if record["periodic"] or not periodic:
                return folder, record["state"]
        if rejected and not periodic:
            raise CheckpointError(
                f"{self.folder}: none of the {rejected} checkpoints is whole. Restore one from a backup, "
                "or remove the folder to train from the start."
            )
        return None

    def roll_back(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest periodic checkpoint and its state; all newer ones are removed. Every rank calls it."""
        self.settle()
        self.world.barrier()
        found = self.latest(periodic=True)
        self.world.barrier()
        if self.world.rank == 0 and found:
            for newer in (folder for folder in self.steps() if folder.name > found[0].name):
                remove_checkpoint(newer)
        self.world.barrier()
        return found

    def steps(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted(f for f in found if NAME.fullmatch(f.name))

    def best(self) -> Path | None:
        """The checkpoint with the lowest score, the oldest of equal ones; None where none has a score."""
        scores = [(record["score"], f) for f in self.steps() if (record := read_record(f))]
        scores = [(score, f) for score, f in scores if score is not None]
        return min(scores)[1] if scores else None

    def _write(self, step: int, snapshot: Snapshot, texts: dict[str, str], record: dict[str, Any]) -> None:
        """In the thread: write this rank's files; rank 0 then completes the folder when all ranks' files are there."""
        final = self.folder / f"step-{step:08d}"
        partial, rank = final.with_name(final.name + PARTIAL), self.world.rank
        try:
            partial.mkdir(parents=True, exist_ok=True)
            snapshot.write(partial)
            if rank == 0:
                for name, text in texts.items():
                    (partial / name).write_text(text, "utf-8")
            files = [*partial.glob(f"{rank_prefix(rank)}*"), *(partial / name for name in texts if rank == 0)]
            hashes = {file.name: flushed_sha256(file) for file in sorted(files)}
            if rank == 0:
                for other in range(1, self.world.size):
                    hashes |= self._hashes_of(other, partial)
                write_record(partial, record | {"sha256": hashes})
                if final.exists():
                    remove_checkpoint(final)
                os.rename(partial, final)
                flush(self.folder)
                self._prune()
            else:
                write_json(partial / f"{rank_prefix(rank)}.json", hashes)
        except BaseException as error:  # raised later, in the thread of the loop
            error.add_note(f"This happened while the checkpoint of step {step} was written.")
            self._fail(error, step, partial)

    def _fail(self, error: BaseException, step: int, partial: Path) -> None:
        if isinstance(error, OSError):
            self._error = CheckpointError(self._write_failure(step, error))
            self._error.__cause__ = error
        else:
            self._error = error
        if self.world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        else:
            # An empty file fits on a full disk; if not, rank 0 waits until TIMEOUT.
            with suppress(OSError):
                (partial / f"{rank_prefix(self.world.rank)}.failed").touch()

    def _hashes_of(self, rank: int, partial: Path) -> dict[str, str]:
        """The sha256 of another rank's files, once it has reported them. Raises CheckpointError where it does not."""
        report, deadline, shortened = partial / f"{rank_prefix(rank)}.json", time.monotonic() + TIMEOUT, False
        while not report.exists():
            if report.with_suffix(".failed").exists():
                raise CheckpointError(
                    f"Process {rank} could not write its part of {partial}; see its own message."
                )
            if self._ending.is_set() and not shortened:
                deadline, shortened = min(deadline, time.monotonic() + TIMEOUT_ON_ERROR), True
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{partial}: process {rank} has not written its part. All processes must see one folder: put "
                    "the work folder on a file system that their machines share."
                )
            time.sleep(0.02)
        hashes = json.loads(report.read_text("utf-8"))
        report.unlink()
        return hashes

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _prune(self) -> None:
        """Remove all but the newest, the newest `keep` periodic ones, and the best."""
        steps = self.steps()
        periodic = [folder for folder in steps if (record := read_record(folder)) and record["periodic"]]
        kept = {steps[-1], *periodic[-self.keep :], self.best()}
        for old in steps:
            if old not in kept:
                remove_checkpoint(old)

    def _clear(self) -> None:
        """Remove what a killed run was writing or removing."""
        for pattern in (f"*{PARTIAL}", f"*{REMOVING}"):
            for orphan in self.folder.glob(pattern):
                shutil.rmtree(orphan, ignore_errors=True)

    def _is_damaged(self, folder: Path) -> bool:
        """Whether any rank found damage; each checks its share of the files."""
        found = damage(folder, slice(self.world.rank, None, self.world.size))
        return self.world.sum(float(found is not None))[0] > 0

    def _check_identity(self, folder: Path, record: dict[str, Any]) -> None:
        differs = differences(record["identity"], self.identity)
        if differs:
            raise CheckpointError(
                f"{folder}: this checkpoint belongs to another run: {'; '.join(differs)}. Resuming from it "
                "would make a model that neither run describes. Restore what changed, or remove "
                f"{self.folder} to train from the start."
            )
        if changed := differences(record["computed"], self.computed):
            self.log.message(
                f"{folder}: it was computed differently ({'; '.join(changed)}). The data and their order are the "
                "same; the last digits will differ from those of an uninterrupted run."
            )

    def _write_failure(self, step: int, error: BaseException) -> str:
        whole = [f.name for f in self.steps()]
        left = f"{self.folder / whole[-1]} is whole" if whole else "there is no earlier one"
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return (
            f"{self.folder}: the checkpoint of step {step} could not be written ({reason}); {left}. Free some disk "
            f"space and run again: it continues from {'there' if whole else 'the start'}."
        )
