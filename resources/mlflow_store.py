"""Where MLflow keeps its runs, a database file or a server, and how to reach it without waiting for long.

Importing MLflow takes seconds, so it is imported where a client is needed and not before.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from core.errors import StemmaError
from resources.file_lock import FileLock

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DATA_VERSION = "stemma.data_version"  # tag of a run: the version that it made
CLIENT_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # seconds; MLflow's default of 120 would block a run
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # retries are ours
}


class MlflowUnavailable(StemmaError, ConnectionError):
    """MLflow did not answer or did not accept something; what was to be sent is still in the spool."""


class RunRecord(TypedDict):
    """A run that made or used a data version."""

    run_id: str
    name: str
    experiment: str
    status: str
    role: Literal["made", "used"]
    start_time: int  # milliseconds since 1970
    tags: dict[str, str]
    params: dict[str, str]
    datasets: dict[str, str]  # name -> digest, which is the DVC md5


@dataclass(frozen=True)
class MlflowStore:
    """A tracking URI, and the folder in which a database file's experiments keep their artifacts."""

    uri: str
    artifacts: Path

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def database(self) -> Path | None:
        """The SQLite file, or None if the store is of another kind."""
        path = self.uri.removeprefix("sqlite:///")
        return Path(path) if path != self.uri else None

    def __str__(self) -> str:
        """The URI for messages, without user name and password."""
        before, at, after = self.uri.rpartition("@")
        return f"{before.partition('://')[0]}://…@{after}" if at else self.uri

    def client(self) -> MlflowClient:
        """A client that gives up soon. Raises MlflowUnavailable if there is no working store behind the URI."""
        try:
            return self._client()
        except Exception as error:
            raise MlflowUnavailable(f"{type(error).__name__}: {error}") from error

    def find_runs(self, data_version: str) -> list[RunRecord]:
        """Runs that made or used a data version (DVC md5), oldest first. Raises MlflowUnavailable."""
        if "'" in data_version:
            raise ValueError(f"{data_version}: not a data version; it should be an md5 as in dvc.lock.")
        if self.database is not None and not self.database.exists():
            return []
        try:
            client = self._client()
            names = {e.experiment_id: e.name for e in client.search_experiments()}
            made = client.search_runs(list(names), f"tags.`{DATA_VERSION}` = '{data_version}'")
            used = client.search_runs(list(names), f"dataset.digest = '{data_version}'")
        except Exception as error:
            raise MlflowUnavailable(f"MLflow at {self} does not answer: {error}") from error
        found: dict[str, RunRecord] = {}
        for run in made:
            found.setdefault(run.info.run_id, _record(run, names[run.info.experiment_id], "made"))
        for run in used:
            found.setdefault(run.info.run_id, _record(run, names[run.info.experiment_id], "used"))
        return sorted(found.values(), key=lambda record: record["start_time"])

    def _client(self) -> MlflowClient:
        for name, value in CLIENT_SETTINGS.items():
            os.environ.setdefault(name, value)
        for logger in ("mlflow.store.db.utils", "alembic"):  # one line for each database migration
            logging.getLogger(logger).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        if self.database is None or self.database.exists():
            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.database.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that create the tables at the same time would fail each other.
        with FileLock(self.database.with_name(f"{self.database.name}.lock")):
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            client.search_experiments(max_results=1)
            return client


def _record(run: Run, experiment: str, role: Literal["made", "used"]) -> RunRecord:
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        experiment=experiment,
        status=run.info.status,
        role=role,
        start_time=run.info.start_time,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        datasets={i.dataset.name: i.dataset.digest for i in run.inputs.dataset_inputs} if run.inputs else {},
    )
