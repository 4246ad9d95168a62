"""Writes one in-toto Statement v1 with a SLSA v1 provenance predicate beside every version of an asset.

Notable:
* subjects are the version's files by SHA-256, named relative to its folder, so the statement still holds when
  the folder is moved or uploaded;
* resolved dependencies are everything that decided the bytes: upstream versions (DVC's md5), the raw WARC
  files of a crawl, the git commit (dirty or not), the code files, constraints.txt;
* it is stored outside the versioned folder, because it holds times, hardware and run ids.
`lineage.statement` reads and validates them.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from core.code import library_versions
from core.files import write_atomically
from core.hashing import file_sha256
from lineage.statement import (
    DVC_MD5,
    PREDICATE,
    STATEMENT,
    Statement,
    StatementError,
    statement_path,
    validate,
)
from resources.chain import Stage
from resources.dvc_hashes import files_of
from resources.dvc_ledger import DvcLedger
from resources.git import git_state

BUILD_TYPE = "urn:stemma:build:dvc-stage:v1"  # externalParameters: stage, cmd, params
BUILDER = "urn:stemma:builder:dagster"
_TOOLS = ("stemma", "dagster", "dvc", "torch", "deepspeed", "tokenizers", "transformers", "pyarrow")


@dataclass(frozen=True)
class _Run:
    """The run that made a version."""

    dagster_run: str | None
    mlflow_run: str | None
    started: float | None  # Unix seconds
    finished: float | None
    cpu_seconds: float | None  # None: what this process and its children have used so far
    gpu_seconds: float | None


def write_statement(
    root: Path,
    stage: Stage | str,
    version: str,
    upstream: Mapping[str, str | None],
    dagster_run: str | None = None,
    mlflow_run: str | None = None,
    started: float | None = None,
    finished: float | None = None,
    cpu_seconds: float | None = None,
    gpu_seconds: float | None = None,
) -> Path:
    """Write the statement of the version that is in the stage's folder; returns its path.

    `upstream`: version by stage name. Times are Unix seconds; `cpu_seconds` defaults to what this process and its
    children have used so far (a Dagster step is a process of its own). Raises StatementError if the result would
    not be a valid statement.
    """
    ledger = DvcLedger(root)
    stage = ledger.chain.stage(stage) if isinstance(stage, str) else stage
    folder = ledger.root / stage.out
    run = _Run(dagster_run, mlflow_run, started, finished, cpu_seconds, gpu_seconds)
    statement: Statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": file_sha256(folder / name)}} for name in _names_in(folder)
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "stage": stage.name,
                    "cmd": stage.cmd,
                    "params": _plain(stage.param_values),
                },
                "internalParameters": {"out": stage.out, "codeVersion": ledger.code_version(stage.asset)},
                "resolvedDependencies": list(_dependencies(ledger, stage, upstream)),
            },
            "runDetails": _run_details(stage, version, run),
        },
    }
    validate(statement)
    path = statement_path(ledger.root, stage.name, version)
    with ledger.workspace.plain_errors(f"provenance of {stage.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(statement, indent=1, ensure_ascii=False) + "\n")
    return path


def hardware() -> dict[str, Any]:
    """CPU, cores, memory (GB) and GPUs of this machine; no host name."""
    import psutil

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = named[1] if named else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _gpus() -> list[str]:
    """Names of the GPUs, from the driver: importing torch would take seconds."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _names_in(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in files_of(folder))


def _dependencies(
    ledger: DvcLedger, stage: Stage, upstream: Mapping[str, str | None]
) -> Iterable[dict[str, Any]]:
    """Everything that decided the version's bytes, as in-toto resource descriptors."""
    for name in sorted(upstream):
        if upstream[name] is None:
            raise StatementError(f"{stage.name} was made from {name}, for which dvc.lock records no version.")
        out = ledger.chain.stage(name).out
        yield {
            "name": name,
            "uri": f"dvc:{out}?md5={upstream[name]}",
            "digest": {DVC_MD5: upstream[name]},
            "annotations": {"role": "upstream asset"},
        }
    yield from _crawl_files(ledger.root / stage.out / "manifest.jsonl")
    git = git_state(ledger.root)
    if git.commit:
        yield {
            "name": "source",
            "digest": {"gitCommit": git.commit},
            "annotations": {"role": "source", "dirty": bool(git.dirty), "dirty_files": list(git.dirty[:100])},
            **({"uri": f"git+{git.remote}"} if "://" in git.remote else {}),
        }
    for dep in stage.code_deps:
        for file in [ledger.root / dep] if (ledger.root / dep).is_file() else files_of(ledger.root / dep):
            name = file.relative_to(ledger.root).as_posix()
            yield {"name": name, "digest": {"sha256": file_sha256(file)}, "annotations": {"role": "code"}}
    closure = ledger.closure(stage)
    for name, syntax in closure.files.items():
        digest = {"sha256": file_sha256(ledger.root / name)}
        yield {"name": name, "digest": digest, "annotations": {"role": "code", "syntax": syntax}}
    for name, version in library_versions(closure.libraries).items():
        notes = {"role": "library", "version": version}
        yield {"name": name, "uri": f"pkg:pypi/{name}@{version}", "annotations": notes}
    constraints = ledger.root / "constraints.txt"
    if constraints.is_file():
        yield {
            "name": "constraints.txt",
            "digest": {"sha256": file_sha256(constraints)},
            "annotations": {"role": "environment"},
        }


def _crawl_files(manifest: Path) -> Iterable[dict[str, Any]]:
    """The raw files that a crawl's manifest lists, with the hashes it records."""
    if not manifest.is_file():
        return
    for line in manifest.read_text(encoding="utf-8").splitlines():
        file = json.loads(line)
        yield {
            "name": file["file"],
            "digest": {"sha256": file["sha256"]},
            **({"downloadLocation": file["origin"]} if file.get("origin") else {}),
            "annotations": {"role": "crawl file", "bytes": file["bytes"], "records": file["records"]},
        }


def _run_details(stage: Stage, version: str, run: _Run) -> dict[str, Any]:
    machine = hardware()
    cpu_seconds, gpu_seconds = run.cpu_seconds, run.gpu_seconds
    if cpu_seconds is None:
        used = os.times()
        cpu_seconds = used.user + used.system + used.children_user + used.children_system
    if gpu_seconds is None and not machine["gpus"]:
        gpu_seconds = 0.0
    annotations = {
        "dagster_run": run.dagster_run,
        "mlflow_run": run.mlflow_run,
        "hardware": machine,
        "cpu_seconds": round(cpu_seconds, 1),
        "gpu_seconds": gpu_seconds,
    }
    times = {"startedOn": _rfc3339(run.started), "finishedOn": _rfc3339(run.finished)}
    return {
        "builder": {"id": BUILDER, "version": _versions()},
        "metadata": {k: v for k, v in {"invocationId": run.dagster_run, **times}.items() if v is not None},
        "byproducts": [
            {
                "name": stage.out,
                "digest": {DVC_MD5: version},
                "annotations": {k: v for k, v in annotations.items() if v is not None},
            }
        ],
    }


def _rfc3339(seconds: float | None) -> str | None:
    return (
        datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds is not None else None
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for tool in _TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:  # not installed
            continue
    return found


def _plain(value: Any) -> Any:
    """Parameters as JSON values."""
    return json.loads(json.dumps(value, default=str))
