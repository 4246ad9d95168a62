"""Dagster's latest materialisation of every stage: the version that its log shows, with what it was shown with.

One look-up for everybody. Inside Dagster it asks the instance; for `stemma status` and a `stemma demo` with nothing to
do it reads Dagster's own SQLite file, because importing Dagster takes seconds. A log that is not in SQLite, or whose
tables are other than expected, is asked through Dagster. A test compares the two ways.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.chain import Stage
from resources.yaml_file import read_yaml

if TYPE_CHECKING:
    from dagster import DagsterInstance, EventLogRecord

DATA_VERSION = "dagster/data_version"
_STORAGES = ("storage", "event_log_storage", "run_storage", "schedule_storage")  # sections of dagster.yaml
_PLAIN = (
    "value",
    "text",
    "path",
    "md_str",
    "url",
)  # where a metadata entry of Dagster's JSON keeps its value
_LATEST = """
SELECT e.event, t.value FROM event_logs e
JOIN asset_keys k ON k.asset_key = e.asset_key
LEFT JOIN asset_event_tags t ON t.event_id = e.id AND t.key = ?
WHERE e.dagster_event_type = 'ASSET_MATERIALIZATION' AND e.asset_key = ? AND (? IS NULL OR e.partition = ?)
  AND (k.wipe_timestamp IS NULL OR e.timestamp > k.wipe_timestamp)
ORDER BY e.id DESC LIMIT 1
"""


@dataclass(frozen=True)
class Materialization:
    """A version in Dagster's log, and its metadata as plain values by label."""

    version: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def latest_record(instance: DagsterInstance, stage: Stage, **cursors: int | None) -> EventLogRecord | None:
    """The latest materialisation of a stage in Dagster's log (`before_cursor`, `after_cursor`: storage ids)."""
    from dagster import AssetKey

    return instance.get_latest_data_version_record(AssetKey(stage.asset), False, stage.partition, **cursors)


def version_of(record: EventLogRecord | None) -> str | None:
    """The data version that a record shows, or None."""
    from dagster._core.definitions.data_version import extract_data_version_from_entry

    version = extract_data_version_from_entry(record.event_log_entry) if record else None
    return version.value if version else None


def latest(instance: DagsterInstance, stage: Stage) -> Materialization:
    """The latest materialisation of a stage, asked of Dagster."""
    record = latest_record(instance, stage)
    event = record.asset_materialization if record else None
    if event is None:
        return Materialization()
    plain = {name: getattr(value, "value", None) for name, value in event.metadata.items()}
    return Materialization(version_of(record), plain)


def metadata_of(instance: DagsterInstance, stage: Stage, version: str) -> dict[str, Any]:
    """Dagster's metadata of a version when it was last shown, so that its numbers and plots can be shown again."""
    from dagster import AssetKey, AssetRecordsFilter

    wanted = AssetRecordsFilter(
        asset_key=AssetKey(stage.asset), asset_partitions=[stage.partition] if stage.partition else None
    )
    for record in instance.fetch_materializations(wanted, limit=100).records:
        if record.asset_materialization and version_of(record) == version:
            return dict(record.asset_materialization.metadata)
    return {}


def read_latest(root: Path, stages: Iterable[Stage]) -> dict[str, Materialization]:
    """The latest materialisation of each stage by name, without importing Dagster where its log is in SQLite."""
    stages, home = list(stages), Path(os.environ.get("DAGSTER_HOME") or root / ".dagster")
    log = home / "history" / "runs" / "index.db"
    if not (home / "dagster.yaml").exists() and not log.exists():
        return {stage.name: Materialization() for stage in stages}
    if log.exists() and not _stored_elsewhere(home / "dagster.yaml"):
        try:
            return _read_sqlite(log, stages)
        except (sqlite3.Error, KeyError, TypeError, ValueError):
            pass  # another layout than this file knows: Dagster knows its own
    from resources.dagster_home import open_instance

    with open_instance(root) as instance:
        return {stage.name: latest(instance, stage) for stage in stages}


def _stored_elsewhere(settings: Path) -> bool:
    return settings.exists() and any(name in read_yaml(settings) for name in _STORAGES)


def _read_sqlite(log: Path, stages: Iterable[Stage]) -> dict[str, Materialization]:
    found = {}
    connection = sqlite3.connect(f"{log.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        for stage in stages:
            key = json.dumps([stage.asset])
            row = connection.execute(
                _LATEST, (DATA_VERSION, key, stage.partition, stage.partition)
            ).fetchone()
            found[stage.name] = _materialization(*row) if row else Materialization()
    finally:
        connection.close()
    return found


def _materialization(event: str, version: str | None) -> Materialization:
    data = json.loads(event)["dagster_event"]["event_specific_data"]["materialization"]
    entries = {entry["label"]: entry["entry_data"] for entry in data["metadata_entries"]}
    plain = {
        label: next((entry[name] for name in _PLAIN if name in entry), None)
        for label, entry in entries.items()
    }
    return Materialization(version, plain)
