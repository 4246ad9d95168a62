"""Provenance statements on disk: where they are, how they are read and validated, what they say.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) with a SLSA v1 provenance predicate
(https://slsa.dev/spec/v1.0/provenance), which any verifier of either reads. `lineage.provenance` writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from core.errors import WorkspaceError

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
DVC_MD5 = "dvcMd5"  # in-toto allows a digest set its own algorithms; this one is DVC's `<md5>.dir`

Statement = dict[str, Any]  # JSON values, of the form that `validate` checks


class StatementError(WorkspaceError):
    """A statement is missing, unreadable, invalid, or about another version."""


class RunFacts(TypedDict, total=False):
    """What a statement says about the run that made a version; `--json` of the audit shows it as it is."""

    started: str | None  # RFC 3339
    finished: str | None
    dagster_run: str
    mlflow_run: str
    hardware: dict[str, Any]
    cpu_seconds: float
    gpu_seconds: float
    params: dict[str, Any]
    commit: str
    dirty: bool
    unproven: str  # why there is no valid statement; the only fact then


def statement_path(root: Path, stage: str, version: str) -> Path:
    """provenance/<asset>[/<crawl>]/<version>.json"""
    return Path(root, "provenance", *stage.split("@", 1), f"{version}.json")


def read_statement(root: Path, stage: str, version: str) -> Statement:
    """The statement of a version, validated with the in-toto package. Raises StatementError."""
    statement, shown = _parse(root, stage, version)
    validate(statement, shown)
    _require_version(statement, version, shown)
    return statement


def load_statement(root: Path, stage: str, version: str) -> Statement:
    """The statement of a version as it is, for display: only JSON and version are checked. Raises StatementError."""
    statement, shown = _parse(root, stage, version)
    try:
        _require_version(statement, version, shown)
    except (KeyError, TypeError, AttributeError) as error:
        raise StatementError(f"{shown}: not an in-toto statement with SLSA provenance.") from error
    return statement


def _parse(root: Path, stage: str, version: str) -> tuple[Any, str]:
    path = statement_path(root, stage, version)
    shown = os.path.relpath(path, root)
    if not path.is_file():
        raise StatementError(f"{shown}: there is no provenance statement for this version of {stage}.")
    try:
        return json.loads(path.read_bytes()), shown
    except ValueError as error:
        raise StatementError(f"{shown}: not JSON ({error}).") from error


def _require_version(statement: Statement, version: str, shown: str) -> None:
    stated = dvc_version(statement)
    if stated != version:
        raise StatementError(f"{shown}: describes version {stated}, but is named for {version}.")


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
            raise ValueError("SLSA requires a buildType and a builder id")
    except (ParseError, ValueError, TypeError, KeyError) as error:
        raise StatementError(
            f"{where}: not a valid in-toto statement with SLSA provenance: {error}"
        ) from error


def verify_statement(statement: Statement, found: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Compare a statement's subjects with files found (relative name -> SHA-256).

    Returns (name, expected, found) for each that differs; 'nothing' stands for a file that is missing.
    """
    stated = subjects(statement)
    return [
        (name, stated.get(name, "nothing"), found.get(name, "nothing"))
        for name in sorted({*stated, *found})
        if stated.get(name) != found.get(name)
    ]


def subjects(statement: Statement) -> dict[str, str]:
    """SHA-256 by file name, of a statement's subjects."""
    return {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}


def upstream_versions(statement: Statement) -> dict[str, str]:
    """Version by stage name, of the upstream assets that a statement lists."""
    return {
        d["name"]: d["digest"][DVC_MD5] for d in _dependencies(statement) if DVC_MD5 in d.get("digest", {})
    }


def warc_digests(statement: Statement) -> dict[str, str]:
    """SHA-256 by path or URL, of the raw files that a crawl's statement lists."""
    return {
        d["name"]: d["digest"]["sha256"]
        for d in _dependencies(statement)
        if (d.get("annotations") or {}).get("role") == "crawl file"
    }


def code_hashes(statement: Statement) -> dict[str, str]:
    """Hash of the syntax tree by path, of the files whose code decided a version."""
    return _annotated(statement, "code", "syntax")


def library_versions(statement: Statement) -> dict[str, str]:
    """Version by distribution, of the libraries that this code imports."""
    return _annotated(statement, "library", "version")


def _annotated(statement: Statement, role: str, note: str) -> dict[str, str]:
    notes = {d["name"]: d.get("annotations") or {} for d in _dependencies(statement)}
    return {name: found[note] for name, found in notes.items() if found.get("role") == role and note in found}


def run_facts(statement: Statement) -> RunFacts:
    """Who made the version, when, on which machine, from which commit and parameters."""
    details = statement["predicate"]["runDetails"]
    times = details.get("metadata") or {}
    byproduct: dict[str, Any] = next(iter(details.get("byproducts") or []), {})
    annotations: Any = byproduct.get("annotations") or {}
    facts = RunFacts(started=times.get("startedOn"), finished=times.get("finishedOn"))
    facts.update(annotations)
    facts["params"] = statement["predicate"]["buildDefinition"]["externalParameters"]["params"]
    source = next((d for d in _dependencies(statement) if d["name"] == "source"), None)
    if source:
        facts["commit"] = source["digest"]["gitCommit"]
        facts["dirty"] = source["annotations"]["dirty"]
    return facts


def dvc_version(statement: Statement) -> str | None:
    """The DVC version that a statement is about."""
    byproducts = statement["predicate"]["runDetails"].get("byproducts") or []
    return next((b["digest"][DVC_MD5] for b in byproducts if DVC_MD5 in b.get("digest", {})), None)


def _dependencies(statement: Statement) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return found
