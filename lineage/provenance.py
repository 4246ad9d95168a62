"""One in-toto Statement v1 with a SLSA v1 provenance predicate beside every version of an asset.

Notable:
* subjects are the version's files by SHA-256, named relative to its folder, so the statement still holds when
  the folder is moved or uploaded;
* resolved dependencies are everything that decided the bytes: upstream versions (DVC's md5), the raw WARC
  files of a crawl, the git commit (dirty or not), the code files, constraints.txt;
* it stands outside the versioned folder, for it holds times, hosts and run ids.
The format is https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance, made and validated by
the `in-toto-attestation` package; any verifier of either reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from resources.dvc_ledger import DvcLedger, Stage, files_of
from resources.workspace import WorkspaceError, write_atomically

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:stemma:build:dvc-stage:v1"  # externalParameters: stage, cmd, params
BUILDER = "urn:stemma:builder:dagster"
DVC_MD5 = "dvcMd5"  # in-toto lets a digest set name its own algorithms; this one is DVC's `<md5>.dir`
_TOOLS = ("stemma", "dagster", "dvc", "torch", "deepspeed", "tokenizers", "transformers", "pyarrow")


class StatementError(WorkspaceError):
    """A statement is missing, unreadable, not valid, or not true."""


def statement_path(root: Path, stage: str, version: str) -> Path:
    """provenance/<asset>[/<crawl>]/<version>.json"""
    return Path(root, "provenance", *stage.split("@", 1), f"{version}.json")


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
    """Write the statement of a version that stands in the stage's folder; return its path.

    `upstream`: version by stage name. Times are Unix seconds; `cpu_seconds` is, if not given, what this process
    and its children have used so far (a Dagster step is a process of its own). Raises StatementError if what
    would be written is not a valid statement.
    """
    ledger = DvcLedger(root)
    stage = ledger.stage(stage) if isinstance(stage, str) else stage
    folder = ledger.root / stage.out
    statement = {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": sha256(folder / name)}} for name in _names_in(folder)
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
            "runDetails": _run_details(
                stage, version, dagster_run, mlflow_run, started, finished, cpu_seconds, gpu_seconds
            ),
        },
    }
    validate(statement)
    path = statement_path(ledger.root, stage.name, version)
    with ledger.workspace.plain_errors(f"provenance of {stage.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(statement, indent=1, ensure_ascii=False) + "\n")
    return path


def read_statement(root: Path, stage: str, version: str) -> dict[str, Any]:
    """The valid statement of a version, as plain JSON values. Raises StatementError."""
    path = statement_path(root, stage, version)
    shown = os.path.relpath(path, root)
    if not path.is_file():
        raise StatementError(f"{shown}: there is no provenance statement for this version of {stage}.")
    try:
        statement = json.loads(path.read_bytes())
    except ValueError as error:
        raise StatementError(f"{shown}: not JSON ({error}).") from error
    validate(statement, shown)
    if dvc_version(statement) != version:
        raise StatementError(
            f"{shown}: speaks of version {dvc_version(statement)}, but is named for {version}."
        )
    return statement


def validate(statement: Any, where: str = "statement") -> None:
    """Check form and types with the in-toto package: Statement v1 around a SLSA v1 Provenance. StatementError."""
    from google.protobuf.json_format import ParseDict, ParseError
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    try:
        message = statement_pb2.Statement()
        ParseDict(statement, message)
        Statement.copy_from_pb(message).validate()
        if message.predicate_type != PREDICATE:
            raise ValueError(f"the predicate is {message.predicate_type!r}, not {PREDICATE}")
        predicate = provenance_pb2.Provenance()
        ParseDict(statement["predicate"], predicate)
        for dependency in predicate.build_definition.resolved_dependencies:
            ResourceDescriptor.copy_from_pb(dependency).validate()
        if not predicate.build_definition.build_type or not predicate.run_details.builder.id:
            raise ValueError("SLSA asks for a buildType and a builder id")
    except (ParseError, ValueError, TypeError, KeyError) as error:
        raise StatementError(
            f"{where}: not a valid in-toto statement with SLSA provenance: {error}"
        ) from error


def verify_statement(statement: Mapping[str, Any], found: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Compare a statement's subjects with files found (relative name -> SHA-256).

    Returns (name, expected, found) for each that differs; 'nothing' stands for a file that is not there.
    """
    stated = subjects(statement)
    return [
        (name, stated.get(name, "nothing"), found.get(name, "nothing"))
        for name in sorted({*stated, *found})
        if stated.get(name) != found.get(name)
    ]


def subjects(statement: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by file name, of a statement's subjects."""
    return {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}


def upstream_versions(statement: Mapping[str, Any]) -> dict[str, str]:
    """Version by stage name, of what a statement says its subject was made from."""
    found = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return {d["name"]: d["digest"][DVC_MD5] for d in found if DVC_MD5 in d.get("digest", {})}


def warc_digests(statement: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 by path or URL, of the raw files that a crawl's statement names."""
    found = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return {
        d["name"]: d["digest"]["sha256"]
        for d in found
        if (d.get("annotations") or {}).get("role") == "crawl file"
    }


def run_facts(statement: Mapping[str, Any]) -> dict[str, Any]:
    """Who made it, when, on what: the annotations of the run, with `started` and `finished` (RFC 3339)."""
    details = statement["predicate"]["runDetails"]
    times = details.get("metadata") or {}
    facts = dict(next(iter(details.get("byproducts") or []), {}).get("annotations") or {})
    return {"started": times.get("startedOn"), "finished": times.get("finishedOn"), **facts}


def dvc_version(statement: Mapping[str, Any]) -> str | None:
    """The DVC version that a statement speaks of."""
    byproducts = statement["predicate"]["runDetails"].get("byproducts") or []
    return next((b["digest"][DVC_MD5] for b in byproducts if DVC_MD5 in b.get("digest", {})), None)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Names of the GPUs; asked of the driver, for importing torch takes seconds."""
    if not shutil.which("nvidia-smi"):
        return []
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _names_in(folder: Path) -> list[str]:
    return sorted(f.relative_to(folder).as_posix() for f in files_of(folder))


def _dependencies(
    ledger: DvcLedger, stage: Stage, upstream: Mapping[str, str | None]
) -> Iterable[dict[str, Any]]:
    for name in sorted(upstream):
        if upstream[name] is None:
            raise StatementError(f"{stage.name} was made from {name}, of which dvc.lock records no version.")
        out = ledger.stage(name).out
        yield {
            "name": name,
            "uri": f"dvc:{out}?md5={upstream[name]}",
            "digest": {DVC_MD5: upstream[name]},
            "annotations": {"role": "upstream asset"},
        }
    yield from _crawl_files(ledger.root / stage.out / "manifest.jsonl")
    git = ledger.git_state()
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
            yield {"name": name, "digest": {"sha256": sha256(file)}, "annotations": {"role": "code"}}
    constraints = ledger.root / "constraints.txt"
    if constraints.is_file():
        yield {
            "name": "constraints.txt",
            "digest": {"sha256": sha256(constraints)},
            "annotations": {"role": "environment"},
        }


def _crawl_files(manifest: Path) -> Iterable[dict[str, Any]]:
    """The raw files that a crawl's manifest names, as it hashed them."""
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


def _run_details(
    stage: Stage,
    version: str,
    dagster_run: str | None,
    mlflow_run: str | None,
    started: float | None,
    finished: float | None,
    cpu_seconds: float | None,
    gpu_seconds: float | None,
) -> dict[str, Any]:
    machine = hardware()
    if cpu_seconds is None:
        used = os.times()
        cpu_seconds = used.user + used.system + used.children_user + used.children_system
    if gpu_seconds is None and not machine["gpus"]:
        gpu_seconds = 0.0
    annotations = {
        "dagster_run": dagster_run,
        "mlflow_run": mlflow_run,
        "hardware": machine,
        "cpu_seconds": round(cpu_seconds, 1),
        "gpu_seconds": gpu_seconds,
    }
    times = {"startedOn": _rfc3339(started), "finishedOn": _rfc3339(finished)}
    return {
        "builder": {"id": BUILDER, "version": _versions()},
        "metadata": {k: v for k, v in {"invocationId": dagster_run, **times}.items() if v is not None},
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
        except metadata.PackageNotFoundError:  # a chain without it
            continue
    return found


def _plain(value: Any) -> Any:
    """Parameters as JSON values."""
    return json.loads(json.dumps(value, default=str))
