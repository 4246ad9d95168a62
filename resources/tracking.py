"""The MLflow tracker: every training and evaluation is a run, and no server can stop, slow or lose one.

What a run records goes to a spool on the local disk (`resources.spool`); a thread uploads it to MLflow and records
what was acknowledged (`resources.tracked_run`, `resources.uploader`). A server that is down, hangs or dies meanwhile
costs a warning; the rest is sent by the next run or by `stemma sync`. Notable:

- metrics come from a file that the trainer appends to (`metrics_path`), so the trainer does not depend on MLflow;
- dataset inputs carry the DVC md5 as digest, so MLflow answers *which runs used this corpus*;
- a registered model points to its folder; weights are not copied.
MLflow's own async logging is not used: it loses points silently, and a synchronous call to a dead server blocks for
four minutes (measured, MLflow 3.17).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resources.mlflow_store import MlflowStore, MlflowUnavailable, RunRecord
from resources.spool import entries
from resources.tracked_run import TrackedRun, upload_orphan
from resources.uploader import SpoolUploader

log = logging.getLogger("stemma.tracking")


class Replayed(NamedTuple):
    """What `replay` did: entries (runs) sent completely, and entries that are still to send."""

    sent: int
    left: int


@dataclass(frozen=True)
class MlflowTracker:
    """Where runs are tracked: a database file of the project by default, or an MLflow server."""

    root: Path | str
    tracking_uri: str = ""  # empty: MLFLOW_TRACKING_URI if set, else mlflow.db of the project
    artifacts: str = ""  # folder; empty: mlartifacts/ of the project
    spool: str = ""  # folder for what is not yet sent; empty: spool/ of the project

    def start(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        datasets: Sequence[tuple[str, str | None, str]] = (),
    ) -> TrackedRun:
        """Begin a run. `datasets` are its inputs: (name, DVC md5, folder or URI).

        Use it as a context manager: an exception ends the run as FAILED, an interrupt as KILLED. Raises OSError,
        and only if the spool itself cannot be written.
        """
        spool = self.spool_path()
        return TrackedRun.start(self.store(), spool, experiment, name, params or {}, tags or {}, datasets)

    def replay(self) -> Replayed:
        """Send what earlier runs could not; runs under way are left to their own process."""
        waiting = [entry for entry in entries(self.spool_path()) if entry.try_lock()]
        sent, uploader = 0, None
        try:
            for entry in waiting:
                uploader = uploader or self.uploader()
                sent += upload_orphan(uploader, entry)
        except MlflowUnavailable as error:
            log.warning("MLflow at %s does not accept it: %s", self.store(), error)
        finally:
            for entry in waiting:
                entry.lock.release()
        return Replayed(sent, len(waiting) - sent)

    def find_runs(self, data_version: str) -> list[RunRecord]:
        """Runs that made or used a data version (DVC md5), oldest first. Raises MlflowUnavailable."""
        return self.store().find_runs(data_version)

    def server_command(self, host: str = "127.0.0.1", port: int = 5000) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment of an MLflow UI over our database, in 0.5 GB of memory instead of 3.

        Not for a store that is a server already: it has its own UI.
        """
        argv = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
        argv += ["--backend-store-uri", self.store().uri, "--workers", "1"]
        argv += ["--default-artifact-root", str(self.artifacts_path())]
        argv += ["--artifacts-destination", str(self.artifacts_path())]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        return argv, {**os.environ, **quiet, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def store(self) -> MlflowStore:
        """The tracking URI in force; a database file is named by its absolute path."""
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or "sqlite:///mlflow.db"
        path = uri.removeprefix("sqlite:///")
        uri = uri if path == uri else f"sqlite:///{Path(self.root, path).resolve()}"
        return MlflowStore(uri, self.artifacts_path())

    def uploader(self) -> SpoolUploader:
        """Connect. Raises MlflowUnavailable when there is nothing to connect to."""
        return SpoolUploader.connect(self.store())

    def spool_path(self) -> Path:
        """The folder of what is not yet sent."""
        return Path(self.root, self.spool or "spool").resolve()

    def artifacts_path(self) -> Path:
        """The folder of artifacts, for a database file."""
        return Path(self.root, self.artifacts or "mlartifacts").resolve()
