"""Checkpoints that are either whole or not there, that know what they belong to, and that no step waits for.

Layout: WORK/checkpoints/step-00000300/ holds the engine's files, curve.jsonl and checkpoint.json. Notable:
- the loop hands over a copy in memory and trains on; a thread writes it, flushes it to disk and renames it from a
  name ending in .partial: a process killed at any moment leaves the earlier one in place. One is in the making at
  most; its failure stops the run at the next step;
- each process writes its own files from its own thread and then says so in a file; the first one, when it has
  found the files of all, hashes in hand, seals the folder. Nothing is collective, so no step can get in between;
- checkpoint.json holds the sha256 of every file, checked before anything is read from it: a truncated or altered
  checkpoint is refused, and the one before it is taken;
- it also holds the identity of the run (parent model, data, code, configuration): going on from a checkpoint of
  another run is refused with a sentence that names what differs. On another number of processes a run may go on;
- kept are the newest, the newest `keep` periodic ones and the best; a rollback goes to a periodic one alone, so that
  a checkpoint made because somebody asked a run to stop changes no number of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from model.hashes import file_hash
from model.run_log import Refusal, RunLog, write_json

if TYPE_CHECKING:
    from model.training.world import World

RECORD = {"step", "periodic", "score", "state", "identity", "computed", "sha256"}
NAME, PARTIAL, GOING = re.compile(r"step-\d{8,}"), ".partial", ".going"
PATIENCE = 600.0  # seconds that the first process waits for the files of the others
GRACE = 10.0  # seconds of it that are left once the run is ending by an error


class Snapshot(Protocol):
    """A copy in memory of what one process has to save (model/training/snapshot.py)."""

    def write(self, folder: Path) -> None:
        """Write it into `folder`, into files called rank-00000… by this rank's number; called from a thread."""


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
        """identity: what must be the same to go on; computed: what moves only the last digits (the ranks …)."""
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
        """Begin the checkpoint of `step` once the one before is written; every rank calls it.

        take() copies this rank's state. score: a number of this step, the lowest of which is the best. texts: small
        files to add, by name. What goes wrong from here on is seen in `failed` and raised by `settle`.
        """
        self._join()
        if self.failed:  # the next step's sum will tell the others
            return
        record = {"step": step, "periodic": periodic, "score": score, "state": state}
        record |= {"identity": self.identity, "computed": self.computed}
        # Deep-copied by way of JSON: the loop goes on changing its state.
        arguments = (step, take(), texts or {}, json.loads(json.dumps(record)))
        self._writer = threading.Thread(target=self._write, args=arguments, name=f"checkpoint {step}")
        self._writer.daemon = True
        self._writer.start()

    @property
    def failed(self) -> bool:
        """Whether this rank could not write its last checkpoint."""
        return self._error is not None

    def settle(self) -> None:
        """Wait until the checkpoint in the making is in place; every rank calls it.

        Raises Refusal, with the earlier checkpoints intact, where the disk did not take it.
        """
        self._join()
        if self.world.sum(float(self.failed))[0]:
            self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what went wrong, here or in another process."""
        raise self._error or Refusal(
            "Another process could not write its part of a checkpoint; its own message says why."
        )

    def close(self) -> None:
        """Let the writer end, when the run ends by an error: no longer than GRACE for the files of others."""
        self._ending.set()
        self._join()

    def latest(self, periodic: bool = False) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint (or periodic one) and its state; None where there is none at all.

        Every rank calls it, with no checkpoint in the making: what killed runs left half-written is removed, and
        each rank verifies its share of the files. Raises Refusal where the checkpoint is another run's, or where
        every one is damaged.
        """
        if self.world.rank == 0:
            self._clear()
        self.world.barrier()
        refused = 0
        for folder in reversed(self.steps()):
            if self._is_damaged(folder):
                self.log.message(f"{folder}: refused, {damage(folder)}. Trying the one before it.")
                refused += 1
                continue
            record = _record(folder)
            self._check_identity(folder, record)
            if record["periodic"] or not periodic:
                return folder, record["state"]
        if refused and not periodic:
            raise Refusal(
                f"{self.folder}: none of the {refused} checkpoints is whole. Restore one from a backup, "
                "or remove the folder to train from the start."
            )
        return None

    def go_back(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest periodic checkpoint and its state; all newer ones are removed. Every rank calls it."""
        self.settle()
        self.world.barrier()
        found = self.latest(periodic=True)
        self.world.barrier()
        if self.world.rank == 0 and found:
            for newer in (folder for folder in self.steps() if folder.name > found[0].name):
                _remove(newer)
        self.world.barrier()
        return found

    def steps(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted(f for f in found if NAME.fullmatch(f.name))

    def best(self) -> Path | None:
        """The checkpoint with the lowest score, of equal ones the oldest; None where none has one."""
        scores = [(record["score"], f) for f in self.steps() if (record := _record(f))]
        scores = [(score, f) for score, f in scores if score is not None]
        return min(scores)[1] if scores else None

    def _write(self, step: int, snapshot: Snapshot, texts: dict[str, str], record: dict[str, Any]) -> None:
        """In the thread: this rank's files; on the first rank the seal when all are there, and the rename."""
        final = self.folder / f"step-{step:08d}"
        partial, rank = final.with_name(final.name + PARTIAL), self.world.rank
        try:
            partial.mkdir(parents=True, exist_ok=True)
            snapshot.write(partial)
            if rank == 0:
                for name, text in texts.items():
                    (partial / name).write_text(text, "utf-8")
            files = [*partial.glob(f"{_name(rank)}*"), *(partial / name for name in texts if rank == 0)]
            hashes = {file.name: _hash_on_disk(file) for file in sorted(files)}
            if rank == 0:
                for other in range(1, self.world.size):
                    hashes |= self._hashes_of(other, partial)
                _write_record(partial, record | {"sha256": hashes})
                if final.exists():
                    _remove(final)
                os.rename(partial, final)
                _flush(self.folder)
                self._prune()
            else:
                write_json(partial / f"{_name(rank)}.json", hashes)
        except BaseException as error:  # to be raised where the loop runs
            error.add_note(f"This happened while the checkpoint of step {step} was written.")
            self._fail(error, step, partial)

    def _fail(self, error: BaseException, step: int, partial: Path) -> None:
        if isinstance(error, OSError):
            self._error = Refusal(self._write_failure(step, error))
            self._error.__cause__ = error
        else:
            self._error = error
        if self.world.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        else:
            # A full disk has room for an empty file; if not, PATIENCE ends the waiting.
            with suppress(OSError):
                (partial / f"{_name(self.world.rank)}.failed").touch()

    def _hashes_of(self, rank: int, partial: Path) -> dict[str, str]:
        """What another rank says that it has written, once it has said so."""
        said, until, hurried = partial / f"{_name(rank)}.json", time.monotonic() + PATIENCE, False
        while not said.exists():
            if said.with_suffix(".failed").exists():
                raise Refusal(
                    f"Process {rank} could not write its part of {partial}; its own message says why."
                )
            if self._ending.is_set() and not hurried:
                until, hurried = min(until, time.monotonic() + GRACE), True
            if time.monotonic() > until:
                raise Refusal(
                    f"{partial}: process {rank} has not written its part. All processes must see one folder: put "
                    "the work folder on a file system that their machines share."
                )
            time.sleep(0.02)
        hashes = json.loads(said.read_text("utf-8"))
        said.unlink()
        return hashes

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _prune(self) -> None:
        """Remove all but the newest, the newest `keep` periodic ones, and the best."""
        steps = self.steps()
        periodic = [folder for folder in steps if (record := _record(folder)) and record["periodic"]]
        spared = {steps[-1], *periodic[-self.keep :], self.best()}
        for old in steps:
            if old not in spared:
                _remove(old)

    def _clear(self) -> None:
        """Remove what a killed run was writing or removing."""
        for pattern in (f"*{PARTIAL}", f"*{GOING}"):
            for orphan in self.folder.glob(pattern):
                shutil.rmtree(orphan, ignore_errors=True)

    def _is_damaged(self, folder: Path) -> bool:
        """Whether any rank found a fault; each looks at its share of the files."""
        fault = damage(folder, slice(self.world.rank, None, self.world.size))
        return self.world.sum(float(fault is not None))[0] > 0

    def _check_identity(self, folder: Path, record: dict[str, Any]) -> None:
        differs = _differences(record["identity"], self.identity)
        if differs:
            raise Refusal(
                f"{folder}: this checkpoint belongs to another run: {'; '.join(differs)}. Going on from it would "
                f"make a model that neither describes. Restore what changed, or remove {self.folder} to start anew."
            )
        if moved := _differences(record["computed"], self.computed):
            self.log.message(
                f"{folder}: it was computed otherwise ({'; '.join(moved)}). The data are the same and in the same "
                "order; the last digits will differ from those of an undisturbed run."
            )

    def _write_failure(self, step: int, error: BaseException) -> str:
        whole = [f.name for f in self.steps()]
        left = f"{self.folder / whole[-1]} is whole" if whole else "there is no earlier one"
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return (
            f"{self.folder}: the checkpoint of step {step} could not be written ({reason}); {left}. Free some disk "
            f"space and run again: it goes on from {'there' if whole else 'the start'}."
        )


def damage(folder: Path, share: slice = slice(None)) -> str | None:
    """What is wrong with this checkpoint, as half a sentence; None if every byte is as it was written.

    share: which of its files to look at, in the order of their names.
    """
    record = _record(folder)
    if record is None:
        return "checkpoint.json cannot be read"
    for name, wanted in sorted(record["sha256"].items())[share]:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_hash(folder / name) != wanted:
            return f"{name} is truncated or altered (its sha256 is not the recorded one)"
    return None


def _differences(theirs: dict, ours: dict, prefix: str = "") -> list[str]:
    found = []
    for key in sorted(set(theirs) | set(ours)):
        old, new = theirs.get(key), ours.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def _record(folder: Path) -> dict[str, Any] | None:
    """checkpoint.json; None where it cannot be read or is none of ours."""
    try:
        record = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= RECORD else None


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    _flush(path)
    _flush(folder)


def _name(rank: int) -> str:
    """How the names of a rank's files begin."""
    return f"rank-{rank:05d}"


def _hash_on_disk(path: Path) -> str:
    """A file's sha256, once it is on the disk."""
    _flush(path)
    return file_hash(path)


def _remove(folder: Path) -> None:
    """Remove a checkpoint; killed in between, it is gone all the same."""
    going = folder.with_name(folder.name + GOING)
    shutil.rmtree(going, ignore_errors=True)
    os.rename(folder, going)
    shutil.rmtree(going, ignore_errors=True)


def _flush(path: Path) -> None:
    """Force a file or folder to disk, so that a rename never outruns what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
