"""What happens when a stage is materialised, always in this order, around the body that its asset file has.

Take the stage's lock; reuse the version if inputs, code and parameters are as recorded; build the new version in a work
folder; check it; publish it by rename; let DVC commit it; record it in its MLflow run; write its provenance; report it
to Dagster. A step killed anywhere in between leaves the old version or the new one, and a re-run ends with the same
bytes.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets.stage import Evidence, Stage, StageRun
from core.files import remove_tree
from core.hashing import text_sha256
from lineage.provenance import write_statement
from lineage.statement import statement_path
from resources import chain, dagster_log
from resources.dvc_ledger import DvcLedger
from resources.engine import ExecutionEngine
from resources.git import git_state
from resources.launch import TrainingLauncher
from resources.settings_check import check_settings
from resources.tracked_run import TrackedRun
from resources.tracking import MlflowTracker

RESOURCES = {"ledger", "tracker", "launcher", "engine"}
Events = Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]


@dataclass(frozen=True)
class Materialization:
    """One stage being materialised: its body, its declaration in dvc.yaml, and the resources of the run."""

    stage: Stage
    declared: chain.Stage
    context: dg.AssetExecutionContext
    ledger: DvcLedger
    tracker: MlflowTracker
    launcher: TrainingLauncher
    engine: ExecutionEngine

    @property
    def name(self) -> str:
        return self.declared.name

    def run(self, force: bool) -> Events:
        """Yield what Dagster is to record. Raises dagster.Failure, and the StemmaErrors of ledger and body."""
        check_settings(self.ledger.chain, self.ledger.workspace.params())
        self.ledger.check_code()
        with self.ledger.workspace.lock(self.name):
            reasons = self.ledger.changes(self.name)
            version = self.ledger.recorded(self.name)
            if version and not reasons and not force and not self.ledger.inside_repro(self.name):
                yield from self._reuse(version)
            else:
                self.context.log.info("Building %s: %s", self.name, "; ".join(reasons) or "asked for")
                yield from self._build()

    # -- a new version ------------------------------------------------------------------------------

    def _build(self) -> Events:
        inputs = self._verified_inputs()
        work = self.ledger.workspace.work_path(self.name, self._work_key())
        out = work / "out"
        if out.exists():
            remove_tree(out)
        started, cpu_before = time.time(), _cpu_seconds()
        with self._tracked_run(inputs) as tracked:
            evidence = self.stage.body(self._stage_run(inputs, out, work, tracked))
            yield from self._checked(evidence)
            self.ledger.workspace.publish(out, self.ledger.root / self.declared.out)
            version = self.ledger.commit(self.name)
            if tracked:
                self._record_in_mlflow(tracked, version, evidence)
        self._write_statement(
            version,
            mlflow_run=(tracked.run_id or tracked.key) if tracked else None,
            started=started,
            finished=time.time(),
            cpu_seconds=_cpu_seconds() - cpu_before,
        )
        self.ledger.workspace.discard_work(self.name)
        yield dg.MaterializeResult(
            asset_key=self.stage.name,
            data_version=dg.DataVersion(version),
            metadata=_metadata(evidence, self.declared.out, version, time.time() - started, tracked),
        )

    def _verified_inputs(self) -> dict[str, list[chain.Stage]]:
        """The stages that this one reads, by asset, each on disk as dvc.lock records it."""
        self.ledger.refuse_undeclared()
        inputs = self.ledger.chain.inputs_by_asset(self.name)
        for upstream in (stage for stages in inputs.values() for stage in stages):
            if not (self.ledger.root / upstream.out).exists():
                raise dg.Failure(
                    f"{self.name} needs {upstream.out}, which is not there. "
                    f"Build it first: stemma materialize {upstream.name}"
                )
            found, recorded = self.ledger.hash_out(upstream.name), self.ledger.recorded(upstream.name)
            if found != recorded and not self.ledger.inside_repro():
                raise dg.Failure(
                    f"{upstream.out} is not the version that dvc.lock records ({found} on disk, {recorded} recorded), "
                    f"so {self.name} would be built from an unrecorded version. Get the recorded one back with "
                    f"'dvc checkout {upstream.name}', or rebuild it with 'stemma materialize {upstream.name} --force'."
                )
        return inputs

    def _stage_run(
        self, inputs: Mapping[str, list[chain.Stage]], out: Path, work: Path, tracked: TrackedRun | None
    ) -> StageRun:
        return StageRun(
            name=self.stage.name,
            partition=self.declared.partition,
            entries=self.declared.entries,
            params=self.ledger.workspace.section(self.name),
            inputs={asset: self._folders(stages) for asset, stages in inputs.items()},
            out=out,
            work=work,
            workspace=self.ledger.workspace,
            context=self.context,
            launcher=self.launcher,
            engine=self.engine,
            tracked=tracked,
        )

    def _folders(self, stages: list[chain.Stage]) -> Path | list[Path]:
        """The folders of an input: a list where every crawl of a partitioned asset is read."""
        folders = [self.ledger.root / stage.out for stage in stages]
        return folders if self.declared.partition is None and stages[0].partition else folders[0]

    def _work_key(self) -> str:
        """Name the work folder by everything that decides the result, so that a re-run of the same resumes it."""
        decides = [self.name, self.declared.param_values, self.ledger.origins(self.name)]
        return text_sha256(json.dumps(decides, sort_keys=True, default=str))[:16]

    def _tracked_run(
        self, inputs: Mapping[str, list[chain.Stage]]
    ) -> AbstractContextManager[TrackedRun | None]:
        if not self.stage.tracked:
            return nullcontext()
        upstream = [stage for stages in inputs.values() for stage in stages]
        return self.tracker.start(
            experiment=self.stage.name,
            name=f"{self.stage.name} {self.context.run_id[:8]}",
            params=_flat(self.declared.param_values),
            tags={
                "stemma.asset": self.name,
                "stemma.code_version": self.ledger.code_version(self.stage.name),
                "dagster.run_id": self.context.run_id,
                "git.commit": git_state(self.ledger.root).name,
            },
            datasets=[(s.name, self.ledger.recorded(s.name), s.out) for s in upstream],
        )

    def _record_in_mlflow(self, tracked: TrackedRun, version: str, evidence: Evidence) -> None:
        tracked.set_tags({"stemma.data_version": version})
        tracked.log_metrics({k: v for k, v in evidence.numbers.items() if isinstance(v, int | float)})
        out = self.ledger.root / self.declared.out
        for path in sorted(out.glob("*.md")) + sorted(out.glob("*.jsonl")) + sorted(out.glob("plots/*.png")):
            tracked.log_artifact(path)
        if self.stage.registered:
            tracked.register_model(
                self.stage.name, out, alias="candidate", tags={"stemma.data_version": version}
            )

    def _checked(self, evidence: Evidence) -> Iterator[dg.AssetCheckResult]:
        """Yield the blocking checks' results; a version that fails one is never published."""
        for check in self.stage.checks:
            yield dg.AssetCheckResult(
                asset_key=self.stage.name,
                check_name=check,
                passed=evidence.checks[check],
                metadata={"found": evidence.check_notes[check]} if check in evidence.check_notes else {},
            )
        failed = [check for check in self.stage.checks if not evidence.checks[check]]
        if failed:
            notes = "; ".join(f"{c}: {evidence.check_notes.get(c, self.stage.checks[c])}" for c in failed)
            raise dg.Failure(
                f"{self.name}: not published, because a check failed ({notes}). The previous version stays."
            )

    # -- the version that is there ------------------------------------------------------------------

    def _reuse(self, version: str) -> Events:
        """Report that the recorded version is current: inputs, code and parameters have not changed."""
        if not statement_path(self.ledger.root, self.name, version).exists():  # killed after the commit
            self._write_statement(version)
        self.context.log.info("Unchanged: version %s is reused. Set 'force' to rebuild it.", version)
        for check in (
            self.stage.checks
        ):  # they passed when this version was built, or it would not have been published
            yield dg.AssetCheckResult(
                asset_key=self.stage.name,
                check_name=check,
                passed=True,
                metadata={"found": f"as for version {version}"},
            )
        metadata = dagster_log.metadata_of(self.context.instance, self.declared, version)
        yield dg.MaterializeResult(
            asset_key=self.stage.name,
            data_version=dg.DataVersion(version),
            metadata={**metadata, "reused": True},
        )

    def _write_statement(self, version: str, **known: Any) -> None:
        upstream = {name: self.ledger.recorded(name) for name in self.ledger.chain.upstream(self.name)}
        write_statement(
            self.ledger.root, self.declared, version, upstream, dagster_run=self.context.run_id, **known
        )


def _cpu_seconds() -> float:
    """Return the CPU seconds that this process and its ended children have used."""
    return sum(os.times()[:4])


def _metadata(
    evidence: Evidence, out: str, version: str, seconds: float, tracked: TrackedRun | None
) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    plots = ({"plot": evidence.plot} if evidence.plot else {}) | evidence.more_plots
    for title, plot in plots.items():
        picture = base64.b64encode(plot).decode()
        shown[title] = dg.MetadataValue.md(f"![{title}](data:image/png;base64,{picture})")
    shown |= evidence.numbers
    shown |= {title: dg.MetadataValue.path(path) for title, path in evidence.files.items()}
    shown |= {title: dg.MetadataValue.md(table) for title, table in evidence.tables.items()}
    shown |= {"folder": dg.MetadataValue.path(out), "dvc_md5": version, "seconds": round(seconds, 1)}
    if tracked and tracked.run_id:
        shown["mlflow_run"] = tracked.run_id
    return shown


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names: {'a': {'b': 1}} -> {'a.b': 1}."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
