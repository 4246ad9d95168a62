"""The MLflow tracker: every training and evaluation is a run, and no server can stop, slow or forget one.

What a run tells is written to the spool on our own disk (`resources.spool`); a thread carries it from there to
MLflow (`resources.delivery`) and remembers what was acknowledged. A server that is down, hangs, or dies on the way
costs a warning; the rest is sent by the next run or by `stemma sync`. Notable:

- metrics come from a file that the trainer appends to (`metrics_path`), so the trainer knows nothing of MLflow;
- dataset inputs carry the DVC md5 as digest, so MLflow answers *which runs used this corpus*;
- a registered model points to its folder; weights are not copied.
Why not MLflow's own async logging: it loses points silently; and a synchronous call to a dead server blocks for
four minutes (measured, MLflow 3.17).
"""

from __future__ import annotations

import getpass
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
from pydantic import Field

from resources.delivery import LONGEST_DIGEST, Delivery, Undelivered, connect
from resources.spool import Entry, entries

ROOT = Path(__file__).resolve().parent.parent
EVERY = 2.0  # seconds between two looks of the sending thread at the spool
SLOWEST = 60.0  # seconds between two attempts while the server is away, at most
PATIENCE = 10.0  # seconds that the end of a run waits for a server that shows no sign of life
PATIENCE_LOCAL = 60.0  # the same for a database file, which cannot hang: its first use makes the tables
DATA_VERSION = "stemma.data_version"
log = logging.getLogger("stemma.tracking")


class Replayed(NamedTuple):
    """What `replay` did: entries (runs) sent completely, and entries that are still to send."""

    sent: int
    left: int


class MlflowTracker(dg.ConfigurableResource):
    """Where runs are tracked: a database file of the project by default, or an MLflow server."""

    tracking_uri: str = Field(
        default="",
        description="MLflow's database or server. Empty: MLFLOW_TRACKING_URI if set, else mlflow.db of the project.",
    )
    artifacts: str = Field(default="", description="Folder of artifacts. Empty: mlartifacts/ of the project.")
    spool: str = Field(
        default="", description="Folder for what is not yet sent. Empty: spool/ of the project."
    )
    root: str = Field(default=str(ROOT), description="The project's folder.")

    def start(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        datasets: Sequence[tuple[str, str | None, str]] = (),
    ) -> TrackedRun:
        """Begin a run. `datasets` are its inputs: (name, DVC md5, folder or URI).

        Use it as a context manager: an exception ends the run as FAILED, an interrupt as KILLED. Raises only if
        the spool itself cannot be written.
        """
        inputs = [[n, _digest(d), str(source)] for n, d, source in datasets]
        entry = Entry.create(self.spool_path(), name)
        entry.append(
            op="start",
            experiment=experiment,
            name=name,
            params=_strings(params or {}),
            tags={"mlflow.user": _user(), "mlflow.source.name": "stemma", **_strings(tags or {})},
            datasets=inputs,
        )
        return TrackedRun(self, entry)

    def replay(self) -> Replayed:
        """Send what earlier runs could not; runs that are going on are left to their own process."""
        waiting = [entry for entry in entries(self.spool_path()) if entry.take()]
        sent, delivery = 0, None
        try:
            for entry in waiting:
                delivery = delivery or self.delivery()
                sent += _send_orphan(delivery, entry)
        except Undelivered as error:
            log.warning("MLflow at %s does not take it: %s", _without_password(self.uri()), error)
        finally:
            for entry in waiting:
                entry.lock.release()
        return Replayed(sent, len(waiting) - sent)

    def find_runs(self, data_version: str) -> list[dict[str, Any]]:
        """Runs that made or used a data version (DVC md5), oldest first.

        Each: run_id, name, experiment, status, role ("made" or "used"), start_time (ms since 1970), tags, params,
        datasets ({name: digest}). Raises Undelivered (a ConnectionError) when MLflow does not answer.
        """
        if "'" in data_version:
            raise ValueError(f"{data_version}: not a data version; it should be an md5 as in dvc.lock.")
        if self._has_no_database():
            return []
        client = connect(self.uri())
        try:
            names = {e.experiment_id: e.name for e in client.search_experiments()}
            found: dict[str, dict[str, Any]] = {}
            for role, wanted in (("made", f"tags.`{DATA_VERSION}`"), ("used", "dataset.digest")):
                for run in client.search_runs(list(names), f"{wanted} = '{data_version}'"):
                    found.setdefault(run.info.run_id, _row(run, names[run.info.experiment_id], role))
        except Exception as error:
            raise Undelivered(
                f"MLflow at {_without_password(self.uri())} does not answer: {error}"
            ) from error
        return sorted(found.values(), key=lambda row: row["start_time"])

    def server_command(self, host: str = "127.0.0.1", port: int = 5000) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment of an MLflow UI over our database, in 0.5 GB of memory instead of 3.

        Raises ValueError if runs go to a server elsewhere, which has its own UI.
        """
        if self.uri().startswith(("http://", "https://")):
            raise ValueError(f"MLflow runs at {_without_password(self.uri())}; open that address.")
        argv = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
        argv += ["--backend-store-uri", self.uri(), "--workers", "1"]
        argv += ["--default-artifact-root", str(self.artifacts_path())]
        argv += ["--artifacts-destination", str(self.artifacts_path())]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        return argv, {**os.environ, **quiet, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def uri(self) -> str:
        """The tracking URI in force; a database file is named by its absolute path."""
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or "sqlite:///mlflow.db"
        path = uri.removeprefix("sqlite:///")
        return uri if path == uri else f"sqlite:///{Path(self.root, path).resolve()}"

    def spool_path(self) -> Path:
        return Path(self.root, self.spool or "spool").resolve()

    def artifacts_path(self) -> Path:
        return Path(self.root, self.artifacts or "mlartifacts").resolve()

    def delivery(self, alive: Any = lambda: None) -> Delivery:
        """Connect; raises Undelivered when there is nothing to connect to."""
        try:
            local = not self.uri().startswith(("http://", "https://"))
            return Delivery(connect(self.uri()), self.artifacts_path() if local else None, alive)
        except Exception as error:
            raise Undelivered(f"{type(error).__name__}: {error}") from error

    def _has_no_database(self) -> bool:
        path = self.uri().removeprefix("sqlite:///")
        return path != self.uri() and not Path(path).exists()


class TrackedRun:
    """A run under way. Whatever is told to it is on our disk when the call returns."""

    def __init__(self, tracker: MlflowTracker, entry: Entry) -> None:
        self._tracker, self._entry = tracker, entry
        self.key = entry.key
        self.metrics_path = entry.metrics_path  # the trainer appends its points here
        self._sender = _Sender(tracker, entry)
        self._sender.start()

    def __enter__(self) -> TrackedRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end("FINISHED")
        else:
            self.end(
                "FAILED" if issubclass(kind, Exception) and "Interrupt" not in kind.__name__ else "KILLED"
            )

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while no server has given one. Waits only for a server not yet tried."""
        self._sender.tried.wait(PATIENCE)
        return self._sender.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add numbers of this process to those of the trainer."""
        self._entry.append_point(step, {name: float(value) for name, value in metrics.items()})

    def log_artifact(self, path: Path | str, below: str = "") -> None:
        """Add a (small) file or folder, as it is now, under the folder `below` of the run's artifacts."""
        self._entry.append(op="artifact", file=self._entry.keep_copy(Path(path)), below=below)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._entry.append(op="tags", tags=_strings(tags))

    def register_model(
        self, name: str, folder: Path | str, alias: str | None = None, tags: Mapping[str, Any] | None = None
    ) -> None:
        """Register the folder as a new version of model `name`, with an alias such as "candidate"."""
        mark = f"{self.key}:{self._entry.ops_path.stat().st_size}"
        self._entry.append(
            op="model",
            id=mark,
            name=name,
            folder=str(Path(folder).resolve()),
            alias=alias,
            tags=_strings(tags or {}),
        )

    def end(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED; waits for the server, but not for a dead one."""
        self._entry.append(op="end", status=status)
        remote = self._tracker.uri().startswith(("http://", "https://"))
        if not self._sender.finish(PATIENCE if remote else PATIENCE_LOCAL):
            log.warning(
                "MLflow at %s has not taken all of run '%s' (%s). Nothing is lost: it waits in %s, and "
                "'stemma sync' sends it when MLflow answers again.",
                _without_password(self._tracker.uri()),
                self.key,
                self._sender.trouble or "no answer",
                self._entry.folder,
            )


class _Sender(threading.Thread):
    """Carries one run's entry to MLflow while it is being written, and older ones when it has time."""

    def __init__(self, tracker: MlflowTracker, entry: Entry) -> None:
        super().__init__(name=f"mlflow {entry.key}", daemon=True)  # never keeps a process from ending
        self._tracker, self._entry = tracker, entry
        self._delivery: Delivery | None = None
        self._ending = threading.Event()
        self._done = threading.Event()
        self._last_sign = time.monotonic()
        self._left_alone = False
        self.tried = threading.Event()  # the first attempt is over, well or badly
        self.run_id: str | None = None
        self.trouble = ""

    def finish(self, patience: float) -> bool:
        """Have the rest sent; False if the server shows no sign of life for `patience` seconds."""
        self._last_sign = time.monotonic()
        self._ending.set()
        while not self._done.wait(0.1):
            if time.monotonic() - self._last_sign > patience:
                return False
        return not self.trouble

    def run(self) -> None:
        pause, ended = EVERY, False
        while not ended:
            last_attempt = self._ending.wait(0 if not self.tried.is_set() else pause)
            try:
                ended = self._send()
                pause, self.trouble = EVERY, ""
            except Exception as error:
                if not self.trouble and not last_attempt:
                    log.warning(
                        "MLflow does not answer (%s); the run goes on and is kept in the spool.", error
                    )
                self.trouble = str(error) or type(error).__name__
                pause = min(2 * pause, SLOWEST)
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

    def _send(self) -> bool:
        if self._delivery is None:
            self._delivery = self._tracker.delivery(self._alive)
            self._alive()
        ended = self._delivery.deliver(self._entry)
        if not ended and not self._left_alone and not self._ending.is_set():
            self._left_alone = True  # once a run is enough
            self._send_older()
        return ended

    def _send_older(self) -> None:
        for entry in entries(self._tracker.spool_path()):
            if self._ending.is_set():
                return
            if entry.key != self._entry.key and entry.take():
                try:
                    _send_orphan(self._delivery, entry)
                finally:
                    entry.lock.release()

    def _alive(self) -> None:
        self._last_sign = time.monotonic()
        if self.run_id is None:
            self.run_id = self._entry.sent().run_id


def _send_orphan(delivery: Delivery, entry: Entry) -> bool:
    """Send an entry whose process is gone (we hold its lock), and remove it."""
    if entry.started() and not delivery.deliver(entry, owner_is_dead=True):
        return False
    entry.close()
    return True


def _row(run: Any, experiment: str, role: str) -> dict[str, Any]:
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "experiment": experiment,
        "status": run.info.status,
        "role": role,
        "start_time": run.info.start_time,
        "tags": dict(run.data.tags),
        "params": dict(run.data.params),
        "datasets": {i.dataset.name: i.dataset.digest for i in run.inputs.dataset_inputs},
    }


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
    """A data version as MLflow takes it: <md5>.dir is 36 characters, exactly its limit."""
    digest = version or "unversioned"
    if len(digest) > LONGEST_DIGEST:
        raise ValueError(f"{digest}: {len(digest)} characters; MLflow takes a digest of {LONGEST_DIGEST}.")
    return digest


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return str(os.getuid())


def _without_password(uri: str) -> str:
    before, at, after = uri.rpartition("@")
    return f"{before.partition('://')[0]}://…@{after}" if at else uri
