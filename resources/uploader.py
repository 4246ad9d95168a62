"""Uploads the spool to MLflow, so that each item arrives exactly once however often the upload is retried.

What makes a retry idempotent: the run is found by its tag `stemma.run_key`; MLflow keeps one point for each (name,
step, time, value), one input for each (run, dataset) and one value for each parameter; artifacts are overwritten; a
registered version is found by its tag `stemma.registration`. An alias moves only forward: an entry that arrives late
does not take it from a newer version.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.mlflow_store import MlflowStore, MlflowUnavailable
from resources.spool import Entry, Sent

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_KEY = "stemma.run_key"
REGISTRATION = "stemma.registration"
REGISTERED_AT = "stemma.registered_at"
POINTS = 1000  # MLflow's limit per request
PAIRS = 100  # parameters or tags per request, likewise
LONGEST_PARAM, LONGEST_TAG, LONGEST_DIGEST = 6000, 8000, 36  # characters, likewise


class SpoolUploader:
    """Uploads entries through one client; `on_progress` is called after each item that the server has accepted."""

    def __init__(
        self, client: MlflowClient, artifacts: Path | None, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        """`artifacts`: where new experiments keep their artifacts; None leaves it to the server."""
        self.client, self.artifacts, self.on_progress = client, artifacts, on_progress

    @classmethod
    def connect(cls, store: MlflowStore, on_progress: Callable[[], None] = lambda: None) -> SpoolUploader:
        """An uploader to a store. Raises MlflowUnavailable."""
        return cls(store.client(), None if store.is_server else store.artifacts, on_progress)

    def upload(self, entry: Entry, owner_died: bool = False) -> bool:
        """Upload what the server does not have yet; True when the run has ended and all of it is there.

        A run whose owner died before ending it is ended as KILLED. Raises MlflowUnavailable when the server does
        not accept something now; what it rejects permanently is recorded in the entry.
        """
        sent = entry.sent()
        try:
            self._upload(entry, sent, owner_died)
        except Exception as error:
            if sent.run_id is not None and _is_run_missing(error, sent.run_id):
                entry.save_sent(Sent())  # another database than before: start over
            raise MlflowUnavailable(_short(error)) from error
        return sent.ended

    def _upload(self, entry: Entry, sent: Sent, owner_died: bool) -> None:
        end: dict[str, Any] | None = None
        for after, operation in entry.operations(sent.ops):
            if operation is None:
                entry.reject(None, "an operation that cannot be read")
            elif operation["op"] == "end":
                end = operation  # sent last, after the points
                break
            else:
                self._apply_or_reject(entry, sent, operation)
            sent.ops = after
            self._acknowledge(entry, sent)
        if sent.run_id is None:
            return
        self._send_points(entry, sent, sent.run_id)
        if end is None and owner_died:
            end = {"status": "KILLED", "time": entry.last_activity()}
        if end is not None and not sent.ended:
            self.client.set_terminated(sent.run_id, end["status"], end["time"])
            sent.ended = True
            self._acknowledge(entry, sent)

    def _acknowledge(self, entry: Entry, sent: Sent) -> None:
        entry.save_sent(sent)
        self.on_progress()

    def _apply_or_reject(self, entry: Entry, sent: Sent, operation: dict[str, Any]) -> None:
        try:
            self._apply(entry, sent, operation)
        except Exception as error:
            if not _is_permanent(error) or sent.run_id is None or _is_run_missing(error, sent.run_id):
                raise
            entry.reject(operation, _short(error))

    def _apply(self, entry: Entry, sent: Sent, operation: dict[str, Any]) -> None:
        if operation["op"] == "start":
            return self._send_start(entry, sent, operation)
        if sent.run_id is None:
            raise ValueError(
                f"{entry.key}: the operation {operation['op']} comes before the start of its run"
            )
        send = {"tags": self._send_tags, "artifact": self._send_artifact, "model": self._send_model}
        return send[operation["op"]](entry, sent.run_id, operation)

    def _send_start(self, entry: Entry, sent: Sent, operation: dict[str, Any]) -> None:
        from mlflow.entities import ViewType

        experiment = self._experiment(operation["experiment"])
        if sent.run_id is None:
            found = self.client.search_runs(
                [experiment], f"tags.`{RUN_KEY}` = '{entry.key}'", run_view_type=ViewType.ALL
            )
            if found:
                sent.run_id = found[0].info.run_id
            else:
                tags = {RUN_KEY: entry.key, **operation["tags"]}
                created = self.client.create_run(
                    experiment,
                    operation["time"],
                    {k: v[:LONGEST_TAG] for k, v in tags.items()},
                    operation["name"],
                )
                sent.run_id = created.info.run_id
            entry.save_sent(sent)
        self._log_params(sent.run_id, operation["params"])
        self._log_inputs(sent.run_id, operation["datasets"])

    def _experiment(self, name: str) -> str:
        """The id of the experiment, created if missing, restored if deleted."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = str(self.artifacts / re.sub(r"[^\w.-]", "_", name)) if self.artifacts else None
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another process was first
                assert found is not None
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

    def _send_tags(self, entry: Entry, run_id: str, operation: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(_plain(name), value[:LONGEST_TAG]) for name, value in operation["tags"].items()]
        for first in range(0, len(tags), PAIRS):
            self.client.log_batch(run_id, tags=tags[first : first + PAIRS])

    def _send_artifact(self, entry: Entry, run_id: str, operation: dict[str, Any]) -> None:
        path, below = entry.folder / operation["file"], operation["below"]
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), "/".join(p for p in (below, path.name) if p))
        else:
            self.client.log_artifact(run_id, str(path), below or None)

    def _send_model(self, entry: Entry, run_id: str, operation: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        name, key = operation["name"], operation["id"]
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self.client.search_model_versions(f"name = '{name}' and tags.`{REGISTRATION}` = '{key}'")
        if found:
            version = found[0].version
        else:
            tags = {REGISTRATION: key, REGISTERED_AT: str(operation["time"]), **operation["tags"]}
            version = self._create_version(name, operation["folder"], run_id, tags)
        if operation["alias"] and not self._is_held_by_newer(name, operation["alias"], operation["time"]):
            self.client.set_registered_model_alias(name, operation["alias"], version)

    def _create_version(self, name: str, folder: str, run_id: str, tags: dict[str, str]) -> str:
        """Register without copying weights: the version points to the folder.

        A server rejects a local path as source, because it could name any file on the server's disk; there the
        version points to a small artifact of the run that names the folder.
        """
        source, tags = folder, {**tags, "stemma.folder": folder}
        if self.client.tracking_uri.startswith("http"):
            source = f"runs:/{run_id}/model"
            self.client.log_dict(run_id, {"folder": folder, **tags}, "model/where.json")
        return self.client.create_model_version(name, source, run_id, tags, await_creation_for=0).version

    def _is_held_by_newer(self, name: str, alias: str, time: int) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            holder = self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return False
        return int(holder.tags.get(REGISTERED_AT, 0)) > time

    def _send_points(self, entry: Entry, sent: Sent, run_id: str) -> None:
        from mlflow.entities import Metric

        while True:
            after, points, invalid = entry.points(sent.metrics, POINTS)
            if after == sent.metrics:
                return
            for line in invalid:
                entry.reject(line, "a line of metrics.jsonl that cannot be read")
            for first in range(0, len(points), POINTS):
                batch = points[first : first + POINTS]
                try:
                    metrics = [Metric(_plain(p.name), p.value, p.time, p.step) for p in batch]
                    self.client.log_batch(run_id, metrics=metrics)
                except Exception as error:
                    if not _is_permanent(error) or _is_run_missing(error, run_id):
                        raise
                    entry.reject([point._asdict() for point in batch], _short(error))
            sent.metrics = after
            self._acknowledge(entry, sent)


def _plain(name: str) -> str:
    """A name that MLflow accepts: letters, digits, '_-. :/'; as a path it must be relative, without '..'."""
    return posixpath.normpath(re.sub(r"[^\w\-. :/]", "_", name)).lstrip("/.")[:250] or "_"


def _is_permanent(error: Exception) -> bool:
    """Whether the server would reject the same item again, so that a retry cannot succeed."""
    code = getattr(error, "error_code", None)
    return code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST") or (
        isinstance(error, FileNotFoundError)
    )


def _is_run_missing(error: Exception, run_id: str) -> bool:
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST" and run_id in str(error)


def _short(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}"
