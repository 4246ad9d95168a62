"""One MLflow run under way: what it records goes to the spool, and a thread uploads the spool to MLflow.

No server can stop or slow the run: every call returns as soon as the data is on the local disk.
"""

from __future__ import annotations

import getpass
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resources.mlflow_store import MlflowStore
from resources.spool import Entry, entries
from resources.uploader import LONGEST_DIGEST, SpoolUploader

UPLOAD_SECONDS = 2.0  # between two looks of the uploading thread at the spool
RETRY_SECONDS = 60.0  # between two attempts while the server is away, at most
SERVER_TIMEOUT = 10.0  # seconds that a run waits at its end for a server that makes no progress
DATABASE_TIMEOUT = 60.0  # the same for a database file, which cannot hang: its first use creates the tables
log = logging.getLogger("stemma.tracking")


class TrackedRun:
    """A run under way. Whatever is recorded is on the local disk when the call returns.

    A context manager: an exception ends the run as FAILED, an interrupt as KILLED.
    """

    def __init__(self, store: MlflowStore, entry: Entry) -> None:
        self._store, self._entry = store, entry
        self._timeout = SERVER_TIMEOUT if store.is_server else DATABASE_TIMEOUT
        self.key = entry.key
        self.metrics_path = entry.metrics_path  # the trainer appends its points here
        self._uploading = _UploadThread(store, entry)
        self._uploading.start()

    @classmethod
    def start(
        cls,
        store: MlflowStore,
        spool: Path,
        experiment: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        datasets: Sequence[tuple[str, str | None, str]],
    ) -> TrackedRun:
        """Begin a run; `datasets` are its inputs: (name, DVC md5, folder or URI). Raises OSError."""
        inputs = [[n, _digest(version), str(source)] for n, version, source in datasets]
        entry = Entry.create(spool, name)
        entry.append(
            op="start",
            experiment=experiment,
            name=name,
            params=_strings(params),
            tags={"mlflow.user": _user(), "mlflow.source.name": "stemma", **_strings(tags)},
            datasets=inputs,
        )
        return cls(store, entry)

    def __enter__(self) -> TrackedRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end("FINISHED")
        else:
            interrupted = not issubclass(kind, Exception) or "Interrupt" in kind.__name__
            self.end("KILLED" if interrupted else "FAILED")

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while no server has given one. Waits only for the first attempt to end."""
        self._uploading.tried.wait(self._timeout)
        return self._uploading.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add numbers of this process to those of the trainer."""
        self._entry.append_point(step, {name: float(value) for name, value in metrics.items()})

    def log_artifact(self, path: Path | str, below: str = "") -> None:
        """Add a (small) file or folder, as it is now, under the folder `below` of the run's artifacts."""
        self._entry.append(op="artifact", file=self._entry.copy_artifact(Path(path)), below=below)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Add tags to the run; values become text."""
        self._entry.append(op="tags", tags=_strings(tags))

    def register_model(
        self, name: str, folder: Path | str, alias: str | None = None, tags: Mapping[str, Any] | None = None
    ) -> None:
        """Register the folder as a new version of model `name`, with an alias such as "candidate"."""
        key = f"{self.key}:{self._entry.ops_path.stat().st_size}"
        self._entry.append(
            op="model",
            id=key,
            name=name,
            folder=str(Path(folder).resolve()),
            alias=alias,
            tags=_strings(tags or {}),
        )

    def end(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED; waits for the upload unless the server makes no progress."""
        self._entry.append(op="end", status=status)
        if not self._uploading.finish(self._timeout):
            log.warning(
                "MLflow at %s has not accepted all of run '%s' (%s). Nothing is lost: it waits in %s, and "
                "'stemma sync' sends it when MLflow answers again.",
                self._store,
                self.key,
                self._uploading.error or "no answer",
                self._entry.folder,
            )


class _UploadThread(threading.Thread):
    """Uploads one run's entry while it is being written, and once the entries of earlier runs."""

    def __init__(self, store: MlflowStore, entry: Entry) -> None:
        super().__init__(name=f"mlflow {entry.key}", daemon=True)  # never keeps a process from ending
        self._store, self._entry = store, entry
        self._uploader: SpoolUploader | None = None
        self._ending = threading.Event()
        self._done = threading.Event()
        self._last_progress = time.monotonic()
        self._tried_older = False
        self.tried = threading.Event()  # the first attempt has ended, with or without success
        self.run_id: str | None = None
        self.error = ""  # of the last attempt

    def finish(self, timeout: float) -> bool:
        """Upload the rest; False if an error remains or there is no progress for `timeout` seconds."""
        self._last_progress = time.monotonic()
        self._ending.set()
        while not self._done.wait(0.1):
            if time.monotonic() - self._last_progress > timeout:
                return False
        return not self.error

    def run(self) -> None:
        pause, ended = UPLOAD_SECONDS, False
        while not ended:
            last_attempt = self._ending.wait(0 if not self.tried.is_set() else pause)
            try:
                ended = self._upload()
                pause, self.error = UPLOAD_SECONDS, ""
            except Exception as error:
                if not self.error and not last_attempt:
                    log.warning(
                        "MLflow does not answer (%s); the run continues and is kept in the spool.", error
                    )
                self.error = str(error) or type(error).__name__
                pause = min(2 * pause, RETRY_SECONDS)
            self.tried.set()
            if last_attempt:
                break
        try:
            if ended:
                self._entry.close()
        except OSError as error:
            log.warning("%s is sent, but cannot be removed: %s.", self._entry.folder, error)
        finally:
            self._entry.lock.release()
            self._done.set()

    def _upload(self) -> bool:
        """One attempt; returns whether the run has ended and all of it is uploaded."""
        if self._uploader is None:
            self._uploader = SpoolUploader.connect(self._store, self._on_progress)
            self._on_progress()
        ended = self._uploader.upload(self._entry)
        if not ended and not self._tried_older and not self._ending.is_set():
            self._tried_older = True  # once per run is enough
            self._upload_older(self._uploader)
        return ended

    def _upload_older(self, uploader: SpoolUploader) -> None:
        for entry in entries(self._entry.folder.parent):
            if self._ending.is_set():
                return
            if entry.key != self._entry.key and entry.try_lock():
                try:
                    upload_orphan(uploader, entry)
                finally:
                    entry.lock.release()

    def _on_progress(self) -> None:
        self._last_progress = time.monotonic()
        if self.run_id is None:
            self.run_id = self._entry.sent().run_id


def upload_orphan(uploader: SpoolUploader, entry: Entry) -> bool:
    """Upload an entry whose process has ended (we hold its lock), and remove it."""
    if entry.started() and not uploader.upload(entry, owner_died=True):
        return False
    entry.close()
    return True


def _strings(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested values to dotted names and text: {'a': {'b': 1}} -> {'a.b': '1'}."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _strings(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _digest(version: str | None) -> str:
    """A data version as an MLflow digest: <md5>.dir is 36 characters, exactly the limit."""
    digest = version or "unversioned"
    if len(digest) > LONGEST_DIGEST:
        raise ValueError(
            f"{digest}: {len(digest)} characters; the limit of MLflow for a digest is {LONGEST_DIGEST}."
        )
    return digest


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())
