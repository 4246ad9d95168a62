"""Walk from an asset back to the WARC files, hash every byte again, and compare the ledgers. It does not believe.

For every version in the family tree, from what stands on disk now:
* each file against the SHA-256 in its provenance statement and the md5 in DVC's listing;
* the folder's md5, computed here from every byte (DVC's cache of hashes is not asked), against dvc.lock;
* what dvc.lock and the statement say it was made from, against the versions upstream;
* a crawl's WARC files, wherever they stand, against its manifest and its statement;
* Dagster's latest version, and MLflow's run with its datasets, against dvc.lock.
A disagreement names the thing, what was expected, what was found, and how to mend it. A version that is whole
but out of date (its code or parameters changed since) is a note, not a disagreement.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineage import provenance
from lineage.family import (
    AuditReport,
    Disagreement,
    Node,
    ancestors,
    facts_of,
    family_tree,
    find_targets,
    print_tree,
)
from resources.dvc_ledger import DvcLedger, Stage, dir_md5, file_md5, files_of, path_md5

if TYPE_CHECKING:
    from dagster import DagsterInstance

__all__ = ["AuditReport", "Disagreement", "audit", "family_tree", "print_tree"]

CHUNK = 1 << 20  # bytes read at a time
SILENT_BYTES = 200_000_000  # hashed in under a second or so: no progress bar below it


def audit(
    root: Path,
    target: str,
    *,
    instance: DagsterInstance | None = None,
    find_runs: Callable[[str], list[dict[str, Any]]] | None = None,
) -> AuditReport:
    """Audit an asset (or one stage, `cleaned_corpus@sample`) and all that it came from.

    `find_runs(version)` returns MLflow's runs for a version (resources.tracking). Without `instance`, Dagster's
    is opened from DAGSTER_HOME or .dagster/ if it is there. WorkspaceError if dvc.yaml has no such asset.
    """
    started = time.monotonic()
    ledger = DvcLedger(root)
    report = AuditReport(find_targets(ledger, target), compared=["files", "dvc.lock", "provenance"])
    order = ancestors(ledger, report.targets)
    hashes = _hash_all(ledger.root / ledger.stage(name).out for name in order)
    for name in order:
        _Examiner(ledger, ledger.stage(name), report, hashes).examine()
    for path in ledger.undeclared():
        mend = f"Name it under 'crawls' in params.yaml, or: stemma retire {Path(path).name}"
        report.disagreements.append(
            Disagreement(path, path, "nothing", "a folder that params.yaml does not name", mend)
        )
    _compare_dagster(ledger, report, instance)
    if find_runs is not None:
        _compare_mlflow(ledger, report, find_runs)
    report.seconds = round(time.monotonic() - started, 2)
    return report


# -- bytes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileHash:
    """What one reading of a file gives."""

    md5: str
    sha256: str
    bytes: int


def hash_file(path: Path) -> FileHash:
    """MD5 (DVC's) and SHA-256 (the statements') of a file, read once."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
            size += len(chunk)
    return FileHash(md5.hexdigest(), sha256.hexdigest(), size)


def _hash_all(folders: Iterable[Path]) -> dict[Path, FileHash]:
    """Hash every file below the folders, on all cores (hashlib lets go of the interpreter's lock)."""
    from tqdm import tqdm

    files = [file for folder in folders if folder.is_dir() for file in files_of(folder)]
    total = sum(file.stat().st_size for file in files)
    found = {}
    interval = 0.5 if sys.stderr.isatty() else 10.0
    shown = {"desc": "hashing", "unit": "B", "unit_scale": True, "mininterval": interval}
    with (
        tqdm(total=total, disable=total < SILENT_BYTES, **shown) as bar,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        for file, hashed in zip(files, pool.map(hash_file, files), strict=True):
            found[file] = hashed
            bar.update(hashed.bytes)
    return found


# -- one version -------------------------------------------------------------------------------------------


class _Examiner:
    """Compares everything that is said of one version with what stands on disk."""

    def __init__(self, ledger: DvcLedger, stage: Stage, report: AuditReport, hashes: Mapping[Path, FileHash]):
        self.ledger, self.stage, self.report, self.hashes = ledger, stage, report, hashes
        self.folder = ledger.root / stage.out
        self.version = ledger.recorded(stage.name) or ""
        self.remake = f"stemma materialize {stage.name} --force"
        self.found = self._below(self.folder)
        self.node = report.nodes[stage.name] = Node(
            stage=stage.name,
            version=self.version or None,
            out=stage.out,
            upstream=ledger.upstream(stage.name),
            files=len(self.found),
            bytes=sum(found.bytes for found in self.found.values()),
        )

    def examine(self) -> None:
        """Add what disagrees, and what is out of date, to the report."""
        if not self.version:
            made = f"Make it: stemma materialize {self.stage.name}"
            self._wrong("dvc.lock", f"a version of {self.stage.name}", "none", made)
            return
        if not self.folder.is_dir():
            back = f"Bring it back: dvc checkout {self.stage.name}"
            self._wrong(self.stage.out, self.version, "no such folder", back)
            return
        statement = self._statement()
        if statement:
            self.node.made.update(facts_of(statement))
        named = self._compare_files(statement)
        version = dir_md5({name: found.md5 for name, found in self.found.items()})
        if version != self.version and not named:
            self._wrong(self.stage.out, f"{self.version} (dvc.lock)", version, self._mend())
        self._compare_inputs(statement)
        self._compare_crawl_files(statement)

    def _wrong(self, where: str, expected: str | None, found: str | None, mend: str) -> None:
        wrong = Disagreement(self.stage.name, where, expected or "nothing", found or "nothing", mend)
        self.report.disagreements.append(wrong)

    def _below(self, folder: Path) -> dict[str, FileHash]:
        inside = ((path, found) for path, found in self.hashes.items() if path.is_relative_to(folder))
        return {path.relative_to(folder).as_posix(): found for path, found in inside}

    def _statement(self) -> dict[str, Any] | None:
        try:
            return provenance.read_statement(self.ledger.root, self.stage.name, self.version)
        except provenance.StatementError as error:
            path = provenance.statement_path(self.ledger.root, self.stage.name, self.version)
            shown = path.relative_to(self.ledger.root).as_posix()
            mend = f"Take it from git (git checkout -- {shown}), or: {self.remake}"
            self._wrong(shown, f"the provenance of {self.version}", str(error), mend)
            return None

    def _compare_files(self, statement: dict[str, Any] | None) -> bool:
        """Each file against the statement, then against DVC's listing. Returns whether any was named."""
        named = set()
        if statement:
            found = {name: f.sha256 for name, f in self.found.items()}
            for name, stated, actual in provenance.verify_statement(statement, found):
                named.add(name)
                where = f"{self.stage.out}/{name}"
                self._wrong(where, _digest("sha256", stated), _digest("sha256", actual), self._mend(name))
        listing = self.ledger.cached_listing(self.version)
        for name in sorted({*listing, *self.found} - named) if listing else []:
            actual = self.found[name].md5 if name in self.found else None
            if listing.get(name) != actual:
                named.add(name)
                where, expected = f"{self.stage.out}/{name}", _digest("md5", listing.get(name))
                self._wrong(where, expected, _digest("md5", actual), self._mend(name))
        return bool(named)

    def _mend(self, name: str | None = None) -> str:
        """How to get the recorded bytes back: from DVC's cache, unless they are damaged or missing there too."""
        listing = self.ledger.cached_listing(self.version)
        if listing is None:
            return f"DVC's cache does not hold this version: dvc pull {self.stage.name}, or {self.remake}"
        for md5 in [listing[name]] if name in listing else listing.values():
            cached = self.ledger.cached(md5)
            if not cached.is_file() or file_md5(cached) != md5:
                return f"DVC's cache holds no good copy either. Make it anew: {self.remake}"
        return f"Bring it back from DVC's cache: dvc checkout --force {self.stage.name}"

    def _compare_inputs(self, statement: dict[str, Any] | None) -> None:
        """What it was made from, by dvc.lock and by the statement, against what stands upstream."""
        entry = self.ledger.lock_entry(self.stage.name) or {}
        recorded = {dep["path"]: dep.get("md5") for dep in entry.get("deps") or []}
        again = f"It was made from something else. Make it anew: {self.remake}"
        stated = provenance.upstream_versions(statement) if statement else {}
        for path in self.stage.data_deps:
            stages = [self.ledger.stage(n) for n in self.node.upstream]
            below = [s for s in stages if Path(s.out).is_relative_to(path)]
            found = self._input_version(path, below)
            if found is not None and found != recorded.get(path):
                self._wrong(
                    f"dvc.lock: {path} as read by {self.stage.name}", found, recorded.get(path), again
                )
                continue
            for upstream in below if statement else []:
                now = self.ledger.recorded(upstream.name)
                if stated.get(upstream.name) != now:
                    where = f"provenance of {self.stage.name}: {upstream.name}"
                    self._wrong(where, f"{now} (dvc.lock)", stated.get(upstream.name), again)
        for path in self.stage.code_deps:
            here = self.ledger.root / path
            if not here.exists() or path_md5(here) != recorded.get(path):
                self.report.notes.append(f"{path} has changed since {self.stage.name} was made.")
        params = (entry.get("params") or {}).get("params.yaml") or {}
        for name in self.stage.params:
            if params.get(name) != self.stage.param_values.get(name):
                self.report.notes.append(
                    f"{name} in params.yaml has changed since {self.stage.name} was made."
                )

    def _input_version(self, path: str, stages: list[Stage]) -> str | None:
        """The version upstream, of one stage or of a folder of several; None if its files were found wrong."""
        if len(stages) == 1 and stages[0].out == path:
            return self.ledger.recorded(stages[0].name)
        if {wrong.stage for wrong in self.report.disagreements} & {s.name for s in stages}:
            return None
        below = self._below(self.ledger.root / path)
        return dir_md5({name: found.md5 for name, found in below.items()})

    def _compare_crawl_files(self, statement: dict[str, Any] | None) -> None:
        """Raw WARC files, wherever they stand, against the manifest and the statement."""
        stated = provenance.warc_digests(statement) if statement else {}
        named = {wrong.where for wrong in self.report.disagreements}
        manifest = f"{self.stage.out}/manifest.jsonl"
        if manifest in named:  # it is no witness then
            listed = stated
        elif (self.ledger.root / manifest).is_file():
            lines = (self.ledger.root / manifest).read_text(encoding="utf-8").splitlines()
            listed = {file["file"]: file["sha256"] for file in map(json.loads, lines)}
        else:
            return
        for name, expected in listed.items():
            if statement and stated.get(name) != expected:
                where = f"provenance of {self.stage.name}: {name}"
                self._wrong(
                    where, _digest("sha256", expected), _digest("sha256", stated.get(name)), self.remake
                )
            inside = self.found.get(name)
            if inside is None and "://" in name:
                self.report.notes.append(f"{name} is remote: it was not fetched to be hashed again.")
                continue
            outside = self.ledger.root / name
            actual = inside.sha256 if inside else provenance.sha256(outside) if outside.is_file() else None
            self.node.warc_files += inside is None
            where = f"{self.stage.out}/{name}" if inside else name
            if actual != expected and where not in named:
                mend = f"Restore this file of the crawl; if it is right as it is, take it in: {self.remake}"
                self._wrong(where, _digest("sha256", expected), _digest("sha256", actual), mend)


def _digest(algorithm: str, digest: str | None) -> str | None:
    return digest if digest in (None, "nothing") else f"{algorithm} {digest}"


# -- the other ledgers ---------------------------------------------------------------------------------------


def _compare_dagster(ledger: DvcLedger, report: AuditReport, instance: DagsterInstance | None) -> None:
    """Dagster's latest data version of every member of the family."""
    from lineage.sync import data_version_in_dagster

    home = Path(os.environ.get("DAGSTER_HOME") or ledger.root / ".dagster")
    if instance is None and not (home / "dagster.yaml").exists():
        report.notes.append("Dagster was not asked: it has no DAGSTER_HOME here.")
        return
    report.compared.append("Dagster")
    if instance is None:
        from resources.dagster_home import open_instance

        opened = open_instance(ledger.root)
    else:
        opened = nullcontext(instance)
    with opened as asked:
        for node in report.nodes.values():
            shown = data_version_in_dagster(asked, ledger.stage(node.stage))
            if node.version and shown != node.version:
                where, expected = f"Dagster: {node.stage}", f"{node.version} (dvc.lock)"
                mend = "Tell Dagster what stands here: stemma sync"
                report.disagreements.append(
                    Disagreement(node.stage, where, expected, shown or "nothing", mend)
                )


def _compare_mlflow(
    ledger: DvcLedger, report: AuditReport, find_runs: Callable[[str], list[dict[str, Any]]]
) -> None:
    """Every version whose statement names an MLflow run has one, and it read the versions that dvc.lock names."""
    asked = False
    for node in report.nodes.values():
        if not node.version or not node.made.get("mlflow_run"):
            continue
        try:
            runs = [run for run in find_runs(node.version) if run.get("role", "made") == "made"]
        except ConnectionError as error:
            report.notes.append(f"MLflow was not asked: {error}")
            return
        asked = True
        read = {name: ledger.recorded(name) for name in node.upstream}
        if not runs:
            expected = f"a run tagged stemma.data_version = {node.version}"
            mend = "Send what its server has not heard yet: stemma sync"
            report.disagreements.append(
                Disagreement(node.stage, f"MLflow: {node.stage}", expected, "none", mend)
            )
        elif not any(_read_these(run, read) for run in runs):
            found = ", ".join(f"{n} {v}" for n, v in sorted((runs[-1].get("datasets") or {}).items()))
            expected = ", ".join(f"{n} {v}" for n, v in sorted(read.items()))
            mend = f"It was made from something else. Make it anew: stemma materialize {node.stage} --force"
            report.disagreements.append(
                Disagreement(node.stage, f"MLflow: datasets of {node.stage}", expected, found or "none", mend)
            )
    if asked:
        report.compared.append("MLflow")


def _read_these(run: Mapping[str, Any], versions: Mapping[str, str | None]) -> bool:
    datasets = run.get("datasets")
    return datasets is None or all(datasets.get(name) == version for name, version in versions.items())
