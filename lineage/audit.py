"""Walk from an asset back to the WARC files, hash every byte again, and compare all records. Nothing is trusted.

For every version in the family tree, from what is on disk now:
* each file against the SHA-256 in its provenance statement and the md5 in DVC's listing;
* the folder's md5, computed here from every byte (DVC's cache of hashes is not used), against dvc.lock;
* the inputs that dvc.lock and the statement record, against the versions upstream;
* a crawl's WARC files, wherever they are, against its manifest and its statement;
* Dagster's latest version, and MLflow's run with its datasets, against dvc.lock (lineage.audit_records).
A disagreement names the item, what was expected, what was found, and how to fix it. A version that is intact but out
of date (its code or parameters changed since) is a note, not a disagreement.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from core.hashing import FileDigests, file_digests, file_md5, file_sha256
from core.progress import progress_bar
from lineage.audit_records import FindRuns, compare_dagster, compare_mlflow
from lineage.family import AuditReport, Disagreement, Node
from lineage.statement import (
    Statement,
    StatementError,
    read_statement,
    run_facts,
    statement_path,
    upstream_versions,
    verify_statement,
    warc_digests,
)
from resources.chain import CODE_FILE, Stage
from resources.dvc_hashes import dir_md5, files_of, path_md5
from resources.dvc_ledger import DvcLedger

if TYPE_CHECKING:
    from dagster import DagsterInstance

SILENT_BYTES = 200_000_000  # hashed in under a second or so: no progress bar below it


def audit(
    root: Path,
    target: str,
    *,
    instance: DagsterInstance | None = None,
    find_runs: FindRuns | None = None,
) -> AuditReport:
    """Audit an asset (or one stage, `cleaned_corpus@sample`) and everything upstream of it.

    `find_runs(version)` returns MLflow's runs for a version (resources.tracking). Without `instance`, Dagster's
    is opened from DAGSTER_HOME or .dagster/ if it is there. WorkspaceError if dvc.yaml has no such asset.
    """
    started = time.monotonic()
    ledger = DvcLedger(root)
    report = AuditReport(ledger.chain.select([target]), compared=["files", "dvc.lock", "provenance"])
    order = ledger.chain.with_upstream(report.targets)
    digests = _hash_all(ledger.root / ledger.chain.stage(name).out for name in order)
    for name in order:
        _StageAudit(ledger, ledger.chain.stage(name), report, digests).check()
    for path in ledger.undeclared():
        fix = f"Name it under 'crawls' in params.yaml, or: stemma retire {Path(path).name}"
        report.disagreements.append(
            Disagreement(path, path, "nothing", "a folder that params.yaml does not name", fix)
        )
    compare_dagster(ledger, report, instance)
    if find_runs is not None:
        compare_mlflow(ledger, report, find_runs)
    report.seconds = round(time.monotonic() - started, 2)
    return report


def _hash_all(folders: Iterable[Path]) -> dict[Path, FileDigests]:
    """Hash every file below the folders, on all cores (hashlib releases the GIL)."""
    files = [file for folder in folders if folder.is_dir() for file in files_of(folder)]
    total = sum(file.stat().st_size for file in files)
    found = {}
    with (
        progress_bar(total, "hashing", "B", unit_scale=True, disable=total < SILENT_BYTES) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for file, digests in zip(files, pool.map(file_digests, files), strict=True):
            found[file] = digests
            bar.update(digests.bytes)
    return found


class _StageAudit:
    """Compares every record of one stage's version with what is on disk."""

    def __init__(
        self, ledger: DvcLedger, stage: Stage, report: AuditReport, digests: Mapping[Path, FileDigests]
    ) -> None:
        self.ledger, self.stage, self.report, self.digests = ledger, stage, report, digests
        self.folder = ledger.root / stage.out
        self.version = ledger.recorded(stage.name) or ""
        self.rebuild = f"stemma materialize {stage.name} --force"
        self.found = self._below(self.folder)
        self.node = report.nodes[stage.name] = Node(
            stage=stage.name,
            version=self.version or None,
            out=stage.out,
            upstream=ledger.chain.upstream(stage.name),
            files=len(self.found),
            bytes=sum(found.bytes for found in self.found.values()),
        )

    def check(self) -> None:
        """Add all disagreements, and what is out of date, to the report."""
        if not self.version:
            make = f"Make it: stemma materialize {self.stage.name}"
            self._disagree("dvc.lock", f"a version of {self.stage.name}", "none", make)
            return
        if not self.folder.is_dir():
            restore = f"Restore it: dvc checkout {self.stage.name}"
            self._disagree(self.stage.out, self.version, "no such folder", restore)
            return
        statement = self._statement()
        if statement:
            self.node.made.update(run_facts(statement))
        any_file = self._compare_files(statement)
        version = dir_md5({name: found.md5 for name, found in self.found.items()})
        if version != self.version and not any_file:
            self._disagree(self.stage.out, f"{self.version} (dvc.lock)", version, self._restore())
        self._compare_inputs(statement)
        self._note_changes()
        self._compare_crawl_files(statement)

    def _disagree(self, where: str, expected: str | None, found: str | None, fix: str) -> None:
        wrong = Disagreement(self.stage.name, where, expected or "nothing", found or "nothing", fix)
        self.report.disagreements.append(wrong)

    def _below(self, folder: Path) -> dict[str, FileDigests]:
        inside = ((path, found) for path, found in self.digests.items() if path.is_relative_to(folder))
        return {path.relative_to(folder).as_posix(): found for path, found in inside}

    def _statement(self) -> Statement | None:
        try:
            return read_statement(self.ledger.root, self.stage.name, self.version)
        except StatementError as error:
            path = statement_path(self.ledger.root, self.stage.name, self.version)
            shown = path.relative_to(self.ledger.root).as_posix()
            fix = f"Restore it from git (git checkout -- {shown}), or: {self.rebuild}"
            self._disagree(shown, f"the provenance of {self.version}", str(error), fix)
            return None

    def _compare_files(self, statement: Statement | None) -> bool:
        """Each file against the statement, then against DVC's listing. Returns whether any file disagrees."""
        reported = set()
        if statement:
            sha256 = {name: f.sha256 for name, f in self.found.items()}
            for name, stated, actual in verify_statement(statement, sha256):
                reported.add(name)
                where = f"{self.stage.out}/{name}"
                self._disagree(
                    where, _digest("sha256", stated), _digest("sha256", actual), self._restore(name)
                )
        listing = self.ledger.lock.cached_listing(self.version) or {}
        for name in sorted({*listing, *self.found} - reported) if listing else []:
            listed = listing.get(name)
            found = self.found[name].md5 if name in self.found else None
            if listed != found:
                reported.add(name)
                where = f"{self.stage.out}/{name}"
                self._disagree(where, _digest("md5", listed), _digest("md5", found), self._restore(name))
        return bool(reported)

    def _restore(self, name: str | None = None) -> str:
        """How to get the recorded bytes back: from DVC's cache, unless they are damaged or missing there too."""
        listing = self.ledger.lock.cached_listing(self.version)
        if listing is None:
            return f"DVC's cache does not hold this version: dvc pull {self.stage.name}, or {self.rebuild}"
        for md5 in [listing[name]] if name in listing else listing.values():
            cached = self.ledger.lock.cached(md5)
            if not cached.is_file() or file_md5(cached) != md5:
                return f"DVC's cache holds no good copy either. Rebuild it: {self.rebuild}"
        return f"Restore it from DVC's cache: dvc checkout --force {self.stage.name}"

    def _compare_inputs(self, statement: Statement | None) -> None:
        """The inputs that dvc.lock and the statement record, against the versions upstream."""
        recorded = self._recorded_deps()
        rebuild = f"It was built from something else. Rebuild it: {self.rebuild}"
        stated = upstream_versions(statement) if statement else {}
        upstream = [self.ledger.chain.stage(name) for name in self.node.upstream]
        for path in self.stage.data_deps:
            below = [stage for stage in upstream if Path(stage.out).is_relative_to(path)]
            found = self._input_version(path, below)
            if found is not None and found != recorded.get(path):
                where = f"dvc.lock: {path} as read by {self.stage.name}"
                self._disagree(where, found, recorded.get(path), rebuild)
                continue
            for stage in below if statement else []:
                now = self.ledger.recorded(stage.name)
                if stated.get(stage.name) != now:
                    where = f"provenance of {self.stage.name}: {stage.name}"
                    self._disagree(where, f"{now} (dvc.lock)", stated.get(stage.name), rebuild)

    def _note_changes(self) -> None:
        """Note the code and parameters that changed since the version was made: it is intact, but out of date."""
        recorded = self._recorded_deps()
        for path in self.stage.code_deps:
            here = self.ledger.root / path
            if not here.exists() or path_md5(here) != recorded.get(path):
                self.report.notes.append(f"{path} has changed since {self.stage.name} was made.")
        if dict(self.stage.code_params) != self.ledger.lock.params(self.stage.name, CODE_FILE):
            self.report.notes.append(f"The code of {self.stage.name} has changed since it was made.")
        params = self.ledger.lock.params(self.stage.name)
        for name in sorted({*params, *self.stage.param_values}):
            if params.get(name) != self.stage.param_values.get(name):
                self.report.notes.append(
                    f"{name} in params.yaml has changed since {self.stage.name} was made."
                )

    def _recorded_deps(self) -> dict[str, str | None]:
        entry = self.ledger.lock.entry(self.stage.name) or {}
        return {dep["path"]: dep.get("md5") for dep in entry.get("deps") or []}

    def _input_version(self, path: str, stages: list[Stage]) -> str | None:
        """The version upstream, of one stage or of a folder of several; None if its files already disagree."""
        if len(stages) == 1 and stages[0].out == path:
            return self.ledger.recorded(stages[0].name)
        if {wrong.stage for wrong in self.report.disagreements} & {s.name for s in stages}:
            return None
        below = self._below(self.ledger.root / path)
        return dir_md5({name: found.md5 for name, found in below.items()})

    def _compare_crawl_files(self, statement: Statement | None) -> None:
        """Raw WARC files, wherever they are, against the manifest and the statement."""
        stated = warc_digests(statement) if statement else {}
        reported = {wrong.where for wrong in self.report.disagreements}
        manifest = f"{self.stage.out}/manifest.jsonl"
        if manifest in reported:  # a damaged manifest: only the statement can be used
            listed = stated
        elif (self.ledger.root / manifest).is_file():
            lines = (self.ledger.root / manifest).read_text(encoding="utf-8").splitlines()
            listed = {file["file"]: file["sha256"] for file in map(json.loads, lines)}
        else:
            return
        for name, expected in listed.items():
            if statement and stated.get(name) != expected:
                where = f"provenance of {self.stage.name}: {name}"
                found = stated.get(name)
                self._disagree(where, _digest("sha256", expected), _digest("sha256", found), self.rebuild)
            self._compare_crawl_file(name, expected, reported)

    def _compare_crawl_file(self, name: str, expected: str, reported: set[str]) -> None:
        inside = self.found.get(name)
        if inside is None and "://" in name:
            self.report.notes.append(f"{name} is remote: it was not fetched to be hashed again.")
            return
        outside = self.ledger.root / name
        actual = inside.sha256 if inside else file_sha256(outside) if outside.is_file() else None
        self.node.warc_files += inside is None
        where = f"{self.stage.out}/{name}" if inside else name
        if actual != expected and where not in reported:
            fix = f"Restore this file of the crawl; if its new content is intended, record it: {self.rebuild}"
            self._disagree(where, _digest("sha256", expected), _digest("sha256", actual), fix)


def _digest(algorithm: str, digest: str | None) -> str | None:
    return digest if digest in (None, "nothing") else f"{algorithm} {digest}"
