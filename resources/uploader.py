"""Carries the spool to MLflow, so that each thing arrives exactly once however often we must try.

What makes a second attempt harmless: the run is found again by its tag `stemma.run_key`; MLflow keeps one point
for each (name, step, time, value), one input for each (run, dataset) and one value for each parameter; artifacts
overwrite themselves; a registered version is found again by its tag `stemma.registration`. An alias moves only
forward: an entry that arrives late does not take it from a newer version.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resources.file_lock import FileLock
from resources.spool import Entry, Point, Sent

RUN_KEY = "stemma.run_key"
REGISTRATION = "stemma.registration"
REGISTERED_AT = "stemma.registered_at"
POINTS = 1000  # MLflow's limit a request
PAIRS = 100  # parameters or tags a request, likewise
LONGEST_PARAM, LONGEST_TAG, LONGEST_DIGEST = 6000, 8000, 36  # characters, likewise


class Undelivered(ConnectionError):
    """The tracking server did not take something; it is still in the spool."""


def connect(uri: str) -> Any:
    """An MlflowClient that gives up soon. Importing MLflow takes seconds, so it happens here and not before.

    Raises Undelivered if there is no working store behind the URI.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # seconds; MLflow's own 120 would hold us up
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # we try again ourselves
    import logging

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # not one line a database migration
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    path = uri.removeprefix("sqlite:///")
    if path == uri:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if Path(path).exists():
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    with FileLock(Path(f"{path}.lock")):  # two processes that make the tables at once get in each other's way
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client


class Delivery:
    """Sends entries through one client; `alive` is called after each thing that the server has taken."""

    def __init__(self, client: Any, artifacts: Path | None, alive: Callable[[], None] = lambda: None) -> None:
        """`artifacts`: where new experiments keep their artifacts; None leaves it to the server."""
        self.client, self.artifacts, self.alive = client, artifacts, alive

    def deliver(self, entry: Entry, owner_is_dead: bool = False) -> bool:
        """Send what the entry has and the server has not; True when its run has ended and all of it is there.

        A run whose owner died without a word is ended as KILLED. Raises Undelivered when the server does not
        take something now; what it refuses for good is put aside in the entry.
        """
        sent = entry.sent()
        try:
            self._deliver(entry, sent, owner_is_dead)
        except Exception as error:
            if sent.run_id is not None and _run_is_gone(error, sent.run_id):
                entry.remember(Sent())  # another database than before: begin anew
            raise Undelivered(_short(error)) from error
        return sent.ended

    def _deliver(self, entry: Entry, sent: Sent, owner_is_dead: bool) -> None:
        end: dict[str, Any] | None = None
        for after, operation in entry.operations(sent.ops):
            if operation is None:
                entry.reject(None, "an operation that cannot be read")
            elif operation["op"] == "end":
                end = operation  # said last, after the points
                break
            else:
                self._apply_or_reject(entry, sent, operation)
            sent.ops = after
            entry.remember(sent)
            self.alive()
        if sent.run_id is None:
            return
        self._send_points(entry, sent)
        if end is None and owner_is_dead:
            end = {"status": "KILLED", "time": entry.last_sign()}
        if end is not None and not sent.ended:
            self.client.set_terminated(sent.run_id, end["status"], end["time"])
            sent.ended = True
            entry.remember(sent)
            self.alive()

    def _apply_or_reject(self, entry: Entry, sent: Sent, operation: dict[str, Any]) -> None:
        try:
            getattr(self, f"_send_{operation['op']}")(entry, sent, operation)
        except Exception as error:
            if not _is_final(error) or sent.run_id is None or _run_is_gone(error, sent.run_id):
                raise
            entry.reject(operation, _short(error))

    def _send_start(self, entry: Entry, sent: Sent, operation: dict[str, Any]) -> None:
        from mlflow.entities import ViewType

        experiment = self._experiment(operation["experiment"])
        if sent.run_id is None:
            found = self.client.search_runs(
                [experiment], f"tags.`{RUN_KEY}` = '{entry.key}'", run_view_type=ViewType.ALL
            )
            if not found:
                tags = {RUN_KEY: entry.key, **operation["tags"]}
                created = self.client.create_run(
                    experiment,
                    operation["time"],
                    {k: v[:LONGEST_TAG] for k, v in tags.items()},
                    operation["name"],
                )
                found = [created]
            sent.run_id = found[0].info.run_id
            entry.remember(sent)
        self._log_params(sent.run_id, operation["params"])
        self._log_inputs(sent.run_id, operation["datasets"])

    def _experiment(self, name: str) -> str:
        """The id of the experiment, made or brought back from the bin if need be."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = str(self.artifacts / re.sub(r"[^\w.-]", "_", name)) if self.artifacts else None
            try:
                return self.client.create_experiment(name, artifact_location=place)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another process was first
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        pairs = [Param(_plain(name), value[:LONGEST_PARAM]) for name, value in params.items()]
        for first in range(0, len(pairs), PAIRS):
            self.client.log_batch(run_id, params=pairs[first : first + PAIRS])

    def _log_inputs(self, run_id: str, datasets: list[list[str]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(name, digest, source_type="local", source=json.dumps({"uri": source})),
                [InputTag("mlflow.data.context", "input")],
            )
            for name, digest, source in datasets
        ]
        if inputs:
            self.client.log_inputs(run_id, datasets=inputs)

    def _send_tags(self, entry: Entry, sent: Sent, operation: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(_plain(name), value[:LONGEST_TAG]) for name, value in operation["tags"].items()]
        for first in range(0, len(tags), PAIRS):
            self.client.log_batch(sent.run_id, tags=tags[first : first + PAIRS])

    def _send_artifact(self, entry: Entry, sent: Sent, operation: dict[str, Any]) -> None:
        path, below = entry.folder / operation["file"], operation["below"]
        if path.is_dir():
            self.client.log_artifacts(sent.run_id, str(path), "/".join(p for p in (below, path.name) if p))
        else:
            self.client.log_artifact(sent.run_id, str(path), below or None)

    def _send_model(self, entry: Entry, sent: Sent, operation: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        name, mark = operation["name"], operation["id"]
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self.client.search_model_versions(f"name = '{name}' and tags.`{REGISTRATION}` = '{mark}'")
        if found:
            version = found[0].version
        else:
            tags = {REGISTRATION: mark, REGISTERED_AT: str(operation["time"]), **operation["tags"]}
            version = self._create_version(name, operation["folder"], sent.run_id, tags)
        if operation["alias"] and not self._held_by_newer(name, operation["alias"], operation["time"]):
            self.client.set_registered_model_alias(name, operation["alias"], version)

    def _create_version(self, name: str, folder: str, run_id: str, tags: dict[str, str]) -> str:
        """Register without copying weights: the version points to their folder.

        A server refuses a path of its clients as source, for it might be any file of its own; there the version
        points to a small file in the run that names the folder.
        """
        source, tags = folder, {**tags, "stemma.folder": folder}
        if self.client.tracking_uri.startswith("http"):
            source = f"runs:/{run_id}/model"
            self.client.log_dict(run_id, {"folder": folder, **tags}, "model/where.json")
        return self.client.create_model_version(name, source, run_id, tags, await_creation_for=0).version

    def _held_by_newer(self, name: str, alias: str, time: int) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            holder = self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return False
        return int(holder.tags.get(REGISTERED_AT, 0)) > time

    def _send_points(self, entry: Entry, sent: Sent) -> None:
        from mlflow.entities import Metric

        while True:
            after, points, broken = entry.points(sent.metrics, POINTS)
            if after == sent.metrics:
                return
            for line in broken:
                entry.reject(line, "a line of metrics.jsonl that cannot be read")
            for first in range(0, len(points), POINTS):
                batch = points[first : first + POINTS]
                try:
                    metrics = [Metric(_plain(p.name), p.value, p.time, p.step) for p in batch]
                    self.client.log_batch(sent.run_id, metrics=metrics)
                except Exception as error:
                    if not _is_final(error) or _run_is_gone(error, sent.run_id):
                        raise
                    entry.reject([Point(*p)._asdict() for p in batch], _short(error))
            sent.metrics = after
            entry.remember(sent)
            self.alive()


def _plain(name: str) -> str:
    """A name that MLflow takes: letters, digits, '_-. :/', and as a path it must not go up or begin at the root."""
    return posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", name)).lstrip("/.")[:250] or "_"


def _is_final(error: Exception) -> bool:
    """Whether the server will refuse the same thing again, so that trying later is no use."""
    code = getattr(error, "error_code", None)
    return code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST") or (
        isinstance(error, FileNotFoundError)
    )


def _run_is_gone(error: Exception, run_id: str) -> bool:
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST" and run_id in str(error)


def _short(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}"
