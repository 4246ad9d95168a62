"""The part of an audit that asks Dagster and MLflow: does each know the versions that dvc.lock records?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineage.family import AuditReport, Disagreement
from resources.dvc_ledger import DvcLedger

if TYPE_CHECKING:
    from dagster import DagsterInstance

FindRuns = Callable[[str], Sequence[Mapping[str, Any]]]  # resources.mlflow_store.RunRecord, by data version


def compare_dagster(ledger: DvcLedger, report: AuditReport, instance: DagsterInstance | None) -> None:
    """Compare Dagster's latest data version of every node with dvc.lock."""
    from resources.dagster_log import latest_record, version_of

    home = Path(os.environ.get("DAGSTER_HOME") or ledger.root / ".dagster")
    if instance is None and not (home / "dagster.yaml").exists():
        report.notes.append("Dagster was not compared: there is no DAGSTER_HOME here.")
        return
    report.compared.append("Dagster")
    if instance is None:
        from resources.dagster_home import open_instance

        opened = open_instance(ledger.root)
    else:
        opened = nullcontext(instance)
    with opened as dagster:
        for node in report.nodes.values():
            shown = version_of(latest_record(dagster, ledger.chain.stage(node.stage)))
            if node.version and shown != node.version:
                where, expected = f"Dagster: {node.stage}", f"{node.version} (dvc.lock)"
                fix = "Report the versions on disk to Dagster: stemma sync"
                report.disagreements.append(
                    Disagreement(node.stage, where, expected, shown or "nothing", fix)
                )


def compare_mlflow(ledger: DvcLedger, report: AuditReport, find_runs: FindRuns) -> None:
    """Compare MLflow's runs: each version whose statement names a run has one, with the inputs of dvc.lock."""
    compared = False
    for node in report.nodes.values():
        if not node.version or not node.made.get("mlflow_run"):
            continue
        try:
            runs = [run for run in find_runs(node.version) if run.get("role", "made") == "made"]
        except ConnectionError as error:
            report.notes.append(f"MLflow was not compared: {error}")
            return
        compared = True
        read = {name: ledger.recorded(name) for name in node.upstream}
        if not runs:
            expected = f"a run tagged stemma.data_version = {node.version}"
            fix = "Send what its server has not received yet: stemma sync"
            report.disagreements.append(
                Disagreement(node.stage, f"MLflow: {node.stage}", expected, "none", fix)
            )
        elif not any(_has_read(run, read) for run in runs):
            found = ", ".join(f"{n} {v}" for n, v in sorted((runs[-1].get("datasets") or {}).items()))
            expected = ", ".join(f"{n} {v}" for n, v in sorted(read.items()))
            fix = f"It was built from something else. Rebuild it: stemma materialize {node.stage} --force"
            report.disagreements.append(
                Disagreement(node.stage, f"MLflow: datasets of {node.stage}", expected, found or "none", fix)
            )
    if compared:
        report.compared.append("MLflow")


def _has_read(run: Mapping[str, Any], versions: Mapping[str, str | None]) -> bool:
    datasets = run.get("datasets")
    return datasets is None or all(datasets.get(name) == version for name, version in versions.items())
