"""After `git checkout` and `dvc checkout`: report to Dagster the versions that are on disk now.

Dagster reads its event log and not the disk, so after a roll-back it shows versions that are no longer there. `sync`
compares dvc.lock with the log and reports each difference as a materialisation outside any run, with the tags
from which Dagster computes staleness: the version, the code's version, and the versions and events of the inputs.
Upstream first, because an input's event must be in the log before a tag can point to it. Nothing is built or changed
on disk, and what already agrees is not reported: a second `sync` reports nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from resources.chain import Stage
from resources.dagster_log import latest_record, metadata_of, version_of
from resources.dvc_ledger import DvcLedger

if TYPE_CHECKING:
    from dagster import DagsterInstance
    from dagster._core.definitions.data_version import DataProvenance

RESTORED = "restored by stemma sync from dvc.lock"
# A pointer to the log's first event: every later event of the input counts as an update, so Dagster shows "stale".
BEFORE_EVERYTHING = 1


def sync(root: Path, instance: DagsterInstance) -> list[str]:
    """Report to Dagster every version of dvc.lock that its log does not show as current; one line for each.

    A stage whose folder is missing or differs from dvc.lock is not reported but named in a line of its own.
    """
    ledger = DvcLedger(root)
    lines = []
    for name in ledger.chain.in_order():
        version = ledger.recorded(name)
        if version is None:
            continue
        stage = ledger.chain.stage(name)
        if not (ledger.root / stage.out).exists() or ledger.hash_out(name) != version:
            lines.append(
                f"{name}: not reported, because {stage.out} is not version {version}. Run 'dvc checkout'."
            )
            continue
        recorded = _RecordedVersion(ledger, instance, stage, version)
        differences = recorded.differences()
        if differences:
            recorded.report()
            lines.append(f"{name}: {version} ({'; '.join(differences)})")
    return lines


class _RecordedVersion:
    """A version that is on disk as dvc.lock records it, compared with what Dagster's log says about it."""

    def __init__(self, ledger: DvcLedger, instance: DagsterInstance, stage: Stage, version: str):
        self.ledger, self.instance, self.stage, self.version = ledger, instance, stage, version
        self.code_version = str(ledger.recorded_code_version(stage.name))
        changed = ledger.changed_inputs(stage.name)
        self.inputs: dict[str, list[Stage]] = {}  # upstream asset -> its stages
        for name in ledger.chain.upstream(stage.name):
            upstream = ledger.chain.stage(name)
            self.inputs.setdefault(upstream.asset, []).append(upstream)
        self.changed = {
            asset
            for asset, stages in self.inputs.items()
            if any(Path(s.out).is_relative_to(path) for s in stages for path in changed)
        }

    def differences(self) -> list[str]:
        """Where Dagster's log differs from dvc.lock, one sentence each."""
        from dagster._core.definitions.data_version import extract_data_provenance_from_entry

        record = latest_record(self.instance, self.stage)
        if record is None or version_of(record) != self.version:
            return [f"Dagster showed {version_of(record) or 'none'}"]
        provenance = extract_data_provenance_from_entry(record.event_log_entry)
        if provenance is None:
            return ["Dagster had not recorded its inputs"]
        found = []
        if provenance.code_version != self.code_version:
            found.append("Dagster showed another code version")
        for asset in self.inputs:
            stale = self._is_stale_in_dagster(provenance, asset)
            if stale != (asset in self.changed):
                found.append(f"Dagster showed its {asset} as {'changed' if stale else 'unchanged'}")
        return found

    def report(self) -> None:
        """Write the version to Dagster's log, with the metadata that Dagster showed for it before."""
        from dagster import AssetMaterialization
        from dagster._core.definitions.data_version import (
            CODE_VERSION_TAG,
            DATA_VERSION_IS_USER_PROVIDED_TAG,
            DATA_VERSION_TAG,
        )

        tags = {
            DATA_VERSION_TAG: self.version,
            DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
            CODE_VERSION_TAG: self.code_version,
        }
        before = metadata_of(self.instance, self.stage, self.version)
        event = AssetMaterialization(
            asset_key=self.stage.asset,
            partition=self.stage.partition,
            description=f"{self.version}, {RESTORED}",
            metadata={**before, "dvc_md5": self.version, "restored": RESTORED},
            tags={**tags, **self._input_tags()},
        )
        self.instance.report_runless_asset_event(event)

    def _is_stale_in_dagster(self, provenance: DataProvenance, asset: str) -> bool:
        """Whether Dagster considers an input updated since, by the rule of its CachingStaleStatusResolver."""
        from dagster import AssetKey

        key, stages = AssetKey(asset), self.inputs[asset]
        if not provenance.has_input_asset(key):
            return True
        if stages[0].partition is None:
            now = version_of(latest_record(self.instance, stages[0]))
            return provenance.input_data_versions[key].value != now
        cursor = provenance.input_storage_ids[key]
        for stage in stages:
            after = latest_record(self.instance, stage, after_cursor=cursor)
            before = latest_record(self.instance, stage, before_cursor=cursor + 1 if cursor else None)
            if after is not None and version_of(before) != version_of(after):
                return True
        return False

    def _input_tags(self) -> dict[str, str]:
        """Tags that name each input's version and its latest event, as Dagster's own steps write them."""
        from dagster import AssetKey
        from dagster._core.definitions.data_version import (
            get_input_data_version_tag,
            get_input_event_pointer_tag,
        )

        tags = {}
        for asset, stages in self.inputs.items():
            events = [
                record.storage_id for record in (latest_record(self.instance, s) for s in stages) if record
            ]
            pointer = BEFORE_EVERYTHING if asset in self.changed else max(events, default=BEFORE_EVERYTHING)
            tags[get_input_data_version_tag(AssetKey(asset))] = self._input_version(stages)
            tags[get_input_event_pointer_tag(AssetKey(asset))] = str(pointer)
        return tags

    def _input_version(self, stages: list[Stage]) -> str:
        """The version of an input that dvc.lock says this one was made from, in Dagster's format."""
        if stages[0].partition is None:
            deps = (self.ledger.lock.entry(self.stage.name) or {}).get("deps") or []
            return next(str(dep.get("md5")) for dep in deps if dep["path"] == stages[0].out)
        # Dagster's version of several partitions: SHA-256 of their versions, concatenated in order of their names.
        versions = [str(self.ledger.recorded(s.name)) for s in sorted(stages, key=lambda s: str(s.partition))]
        return hashlib.sha256("".join(versions).encode()).hexdigest()
