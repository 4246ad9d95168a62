"""What every asset has in common: from a stage of dvc.yaml to a Dagster asset and back to a recorded version.

An asset file says only what its stage does. Around it, always in this order: take the stage's lock; re-use the
version if inputs, code and parameters are as recorded; make the new version in a work folder; check it; publish it
by rename; let DVC commit it; write its provenance; tell Dagster and MLflow. A step killed anywhere in between leaves
the old version or the new one, and a re-run ends with the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from lineage.provenance import write_statement
from lineage.statement import statement_path
from resources.workspace import remove_tree

OWNER = "team:stemma"


@dataclass
class Evidence:
    """What a stage shows for itself: numbers, plots (PNG bytes) and Markdown tables by title, checks by name.

    `files` are named with their paths (relative to the project) and stand outside the version.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    plot: bytes | None = None
    more_plots: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)
    check_notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRun:
    """What a stage's body is handed: its settings, its inputs, a folder to fill and a folder to resume from."""

    name: str
    partition: str | None
    params: dict[str, Any]
    inputs: dict[str, Path | list[Path]]  # upstream asset -> its folder, or its folders, one a crawl
    out: Path  # to be filled; does not exist yet
    work: Path  # survives a crash; the same inputs find it again
    root: Path
    context: dg.AssetExecutionContext
    launcher: Any
    engine: Any  # where work units run (resources.engine.ExecutionEngine)
    tracked: Any  # the MLflow run (resources.tracking.TrackedRun), or None

    def launch(self, module: str, out: Path | None = None, **more_inputs: Path) -> dict[str, Any]:
        """Run `python -m module` on this stage's settings and inputs as a supervised process; return its result."""
        work = self.work / module.rpartition(".")[2]
        config = {
            "params": self.params,
            "inputs": {name: _as_words(paths) for name, paths in {**self.inputs, **more_inputs}.items()},
            "out": str(out or self.out),
            "work": str(work),
            "metrics": str(self.tracked.metrics_path) if self.tracked else None,
        }
        return self.launcher.run(self.context, module, config, work)


@dataclass(frozen=True)
class Stage:
    """A stage's body and how it shows in the UI. What it depends on stands in dvc.yaml and nowhere else."""

    body: Callable[[StageRun], Evidence]
    group: str
    kinds: frozenset[str]
    checks: Mapping[str, str]  # blocking checks: name -> what it means
    tracked: bool  # has an MLflow run
    registered: bool  # is a model in MLflow's registry
    pool: str | None

    @property
    def name(self) -> str:
        return self.body.__name__


def stage(
    *,
    group: str,
    kinds: set[str],
    checks: Mapping[str, str] | None = None,
    tracked: bool = False,
    registered: bool = False,
    pool: str | None = None,
) -> Callable[[Callable[[StageRun], Evidence]], Stage]:
    """Mark a function as the body of the stage of the same name in dvc.yaml."""
    return lambda body: Stage(body, group, frozenset(kinds), checks or {}, tracked, registered, pool)


# The Launchpad's only setting: every knob stands in params.yaml, so that dvc.lock tells the whole truth.
LAUNCHPAD = {
    "force": dg.Field(bool, default_value=False, description="Make it anew even if nothing has changed.")
}


def as_asset(stage: Stage, ledger: Any, partitions: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    """Build the Dagster asset of a stage: dependencies, code version and description come from dvc.yaml."""
    declared = [s for s in ledger.chain.stages.values() if s.asset == stage.name]
    if not declared:
        raise ValueError(
            f"dvc.yaml: no stage '{stage.name}', though assets/{stage.name}.py has its body. Declare it."
        )
    partitioned = declared[0].partition is not None
    upstream = sorted({asset_of(path) for s in declared for path in s.data_deps})
    code = stage.body.__code__

    @dg.asset(
        name=stage.name,
        deps=upstream,
        group_name=stage.group,
        kinds={*stage.kinds, "dvc"},
        owners=[OWNER],
        description=f"{declared[0].desc}\n\n{_paragraphs(stage.body.__doc__)}",
        code_version=ledger.code_version(stage.name),
        partitions_def=partitions if partitioned else None,
        check_specs=[
            dg.AssetCheckSpec(name, asset=stage.name, description=meaning, blocking=True)
            for name, meaning in stage.checks.items()
        ],
        config_schema=LAUNCHPAD,
        output_required=False,
        pool=stage.pool,
        required_resource_keys={"workspace", "ledger", "tracker", "launcher", "engine"},
        metadata={
            "dagster/code_references": dg.CodeReferencesMetadataValue(
                code_references=[
                    _reference(code.co_filename, code.co_firstlineno, "the stage's body"),
                    _reference(str(ledger.root / "dvc.yaml"), 1, "its declaration"),
                ]
            )
        },
    )
    def compute(context):
        name = f"{stage.name}@{context.partition_key}" if partitioned else stage.name
        yield from _materialize(context, stage, name, force=context.op_execution_context.op_config["force"])

    return compute


def _reference(path: str, line: int, label: str) -> dg.LocalFileCodeReference:
    return dg.LocalFileCodeReference(file_path=path, line_number=line, label=label)


def asset_of(path: str) -> str:
    """Return the asset whose folder a path is: 'data/cleaned_corpus/sample' -> 'cleaned_corpus'."""
    return Path(path).parts[1]


def _materialize(context: dg.AssetExecutionContext, stage: Stage, name: str, force: bool) -> Iterator[Any]:
    resources = context.resources
    workspace, ledger = resources.workspace, resources.ledger
    declared = ledger.chain.stages[name]
    with workspace.lock(name):
        reasons = ledger.changes(name)
        if not reasons and not force and not ledger.inside_repro(name):
            version = ledger.recorded(name)
            if not statement_path(ledger.root, name, version).exists():  # killed between commit and statement
                _write_statement(context, ledger, declared, version)
            yield from _reuse(context, stage, version)
            return
        context.log.info("Making %s: %s", name, "; ".join(reasons) or "asked for")
        inputs = _verified_inputs(ledger, declared)
        key = _work_key(ledger, declared)
        work = workspace.work_path(name, key)
        out = work / "out"
        if out.exists():
            remove_tree(out)
        started, cpu_before = time.time(), _cpu_seconds()
        with _tracked_run(resources.tracker, stage, declared, inputs, ledger, context) as tracked:
            evidence = stage.body(
                StageRun(
                    name=stage.name,
                    partition=declared.partition,
                    params=workspace.section(name),
                    inputs=_folders(ledger, declared, inputs),
                    out=out,
                    work=work,
                    root=ledger.root,
                    context=context,
                    launcher=resources.launcher,
                    engine=resources.engine,
                    tracked=tracked,
                )
            )
            yield from _checked(stage, name, evidence)
            workspace.publish(out, ledger.root / declared.out)
            version = ledger.commit(name)
            if tracked:
                _record_in_mlflow(tracked, stage, ledger.root / declared.out, version, evidence)
        mlflow_run = (tracked.run_id or tracked.key) if tracked else None
        spent = {"started": started, "finished": time.time(), "cpu_seconds": _cpu_seconds() - cpu_before}
        _write_statement(context, ledger, declared, version, mlflow_run=mlflow_run, **spent)
        remove_tree(workspace.root / "work" / name)
        yield dg.MaterializeResult(
            asset_key=stage.name,
            data_version=dg.DataVersion(version),
            metadata=_metadata(evidence, declared.out, version, time.time() - started, tracked),
        )


def _verified_inputs(ledger: Any, declared: Any) -> dict[str, list[Any]]:
    """Return the stages that this one reads, by asset, each seen to be on disk as dvc.lock records it."""
    ledger.refuse_undeclared()
    inputs: dict[str, list[Any]] = {}
    for path in declared.data_deps:
        for upstream in ledger.chain.stages.values():
            if upstream.out == path or upstream.out.startswith(f"{path}/"):
                inputs.setdefault(upstream.asset, []).append(upstream)
    for upstream in (u for us in inputs.values() for u in us):
        if not (ledger.root / upstream.out).exists():
            raise dg.Failure(
                f"{declared.name} needs {upstream.out}, which is not there. "
                f"Make it first: stemma materialize {upstream.name}"
            )
        found, recorded = ledger.hash_out(upstream.name), ledger.recorded(upstream.name)
        if found != recorded and not ledger.inside_repro():
            raise dg.Failure(
                f"{upstream.out} is not the version that dvc.lock records ({found} on disk, {recorded} recorded), so "
                f"{declared.name} would be grown from something nobody can name. Get it back with 'dvc checkout "
                f"{upstream.name}' or make it anew with 'stemma materialize {upstream.name} --force'."
            )
    return inputs


def _folders(ledger: Any, declared: Any, inputs: dict[str, list[Any]]) -> dict[str, Path | list[Path]]:
    """Return the folders to read: a list where every crawl of a partitioned asset is an input."""
    every_crawl = {a for a, ups in inputs.items() if declared.partition is None and ups[0].partition}
    folders = {asset: [ledger.root / up.out for up in ups] for asset, ups in inputs.items()}
    return {asset: paths if asset in every_crawl else paths[0] for asset, paths in folders.items()}


def _work_key(ledger: Any, declared: Any) -> str:
    """Name the work folder by everything that decides the result, so that a re-run of the same resumes it."""
    decides = [declared.name, declared.param_values, ledger.origins(declared.name)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _tracked_run(
    tracker: Any, stage: Stage, declared: Any, inputs: dict[str, list[Any]], ledger: Any, context: Any
):
    if not stage.tracked:
        return nullcontext()
    datasets = [(u.name, ledger.recorded(u.name), u.out) for upstreams in inputs.values() for u in upstreams]
    return tracker.start(
        experiment=stage.name,
        name=f"{stage.name} {context.run_id[:8]}",
        params=_flat(declared.param_values),
        tags={
            "stemma.asset": declared.name,
            "stemma.code_version": ledger.code_version(stage.name),
            "dagster.run_id": context.run_id,
            "git.commit": git_state(ledger.root).name,
        },
        datasets=datasets,
    )


def _record_in_mlflow(tracked: Any, stage: Stage, out: Path, version: str, evidence: Evidence) -> None:
    tracked.set_tags({"stemma.data_version": version})
    tracked.log_metrics({k: v for k, v in evidence.numbers.items() if isinstance(v, int | float)})
    for path in sorted(out.glob("*.md")) + sorted(out.glob("*.jsonl")) + sorted(out.glob("plots/*.png")):
        tracked.log_artifact(path)
    if stage.registered:
        tracked.register_model(stage.name, out, alias="candidate", tags={"stemma.data_version": version})


def _checked(stage: Stage, name: str, evidence: Evidence) -> Iterator[dg.AssetCheckResult]:
    """Yield the blocking checks' results; a version that fails one is never published."""
    for check in stage.checks:
        yield dg.AssetCheckResult(
            asset_key=stage.name,
            check_name=check,
            passed=evidence.checks[check],
            metadata={"found": evidence.check_notes[check]} if check in evidence.check_notes else {},
        )
    failed = [check for check in stage.checks if not evidence.checks[check]]
    if failed:
        notes = "; ".join(f"{c}: {evidence.check_notes.get(c, stage.checks[c])}" for c in failed)
        raise dg.Failure(
            f"{name}: not published, because a check failed ({notes}). The version before stands."
        )


def _reuse(context: dg.AssetExecutionContext, stage: Stage, version: str) -> Iterator[Any]:
    """Say that the recorded version still is the answer: inputs, code and parameters have not changed."""
    context.log.info("Unchanged: version %s is used again. Set 'force' to make it anew.", version)
    for check in stage.checks:  # they passed when this version was made, or it would not have been published
        yield dg.AssetCheckResult(
            asset_key=stage.name,
            check_name=check,
            passed=True,
            metadata={"found": f"as for version {version}"},
        )
    yield dg.MaterializeResult(
        asset_key=stage.name,
        data_version=dg.DataVersion(version),
        metadata={**_metadata_of(context, stage.name, version), "reused": True},
    )


def _metadata_of(context: dg.AssetExecutionContext, asset: str, version: str) -> dict[str, Any]:
    """Return the metadata with which Dagster recorded this version before, or none."""
    partition = context.partition_key if context.has_partition_key else None
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(asset), asset_partitions=[partition] if partition else None
        ),
        limit=20,
    ).records
    for record in records:
        event = record.asset_materialization
        if event and (event.tags or {}).get("dagster/data_version") == version:
            return dict(event.metadata)
    return {}


def _write_statement(context: Any, ledger: Any, declared: Any, version: str, **known: Any) -> None:
    upstream = {name: ledger.recorded(name) for name in ledger.chain.upstream(declared.name)}
    write_statement(ledger.root, declared, version, upstream, dagster_run=context.run_id, **known)


def _cpu_seconds() -> float:
    """Return the CPU seconds that this process and its ended children have used."""
    return sum(os.times()[:4])


def _metadata(evidence: Evidence, out: str, version: str, seconds: float, tracked: Any) -> dict[str, Any]:
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


def _as_words(paths: Path | list[Path]) -> str | list[str]:
    return [str(path) for path in paths] if isinstance(paths, list) else str(paths)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names: {'a': {'b': 1}} -> {'a.b': 1}."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _paragraphs(doc: str | None) -> str:
    import inspect

    return inspect.cleandoc(doc or "")
