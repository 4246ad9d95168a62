"""DVC as the ledger of versions: dvc.yaml declares, Dagster runs, this room commits. It never runs a command.

Notable:
* dvc.yaml, dvc.lock and code versions are read without importing DVC (definitions.py loads them); a test
  proves that our reading agrees with DVC's resolver;
* an asset's version is DVC's own md5 of its folder (`<md5>.dir`), computed by DVC;
* inside `dvc repro` (DVC_STAGE is set) committing is DVC's work: we only hash;
* before a commit, damaged cache objects of the same content are thrown out, for DVC would keep them and
  link them over the good new files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.dvc_hashes import code_hash, dir_md5, file_md5, files_of, path_md5
from resources.dvc_yaml import Stage, overlap, resolve_stages
from resources.workspace import Workspace, WorkspaceError, read_yaml, remove_tree

if TYPE_CHECKING:
    from dvc.repo import Repo

__all__ = ["DvcLedger", "GitState", "Stage", "dir_md5", "file_md5", "files_of", "path_md5"]

BUSY_SECONDS = 0.5  # DVC's read-write lock does not wait, so we ask again


@dataclass(frozen=True)
class GitState:
    """The commit that stands in the project's folder, and what was changed since. No repository: commit ''."""

    commit: str
    dirty: tuple[str, ...]  # changed or new files, without dvc.lock and provenance/
    remote: str = ""  # URL of `origin`, without user name or password


class DvcLedger:
    """The versions of a project's stages: what is declared, what is recorded, what has changed, what to record."""

    def __init__(self, root: Path | str):
        self.root = Path(root).resolve()
        self.workspace = Workspace(self.root)
        self._read: dict[str, tuple[tuple[int, int, int], Any]] = {}

    # -- what is declared ---------------------------------------------------------------------------

    def stages(self) -> dict[str, Stage]:
        """Every stage of dvc.yaml by name, partitions filled in, in the order of the file."""
        signature = (self._signature("dvc.yaml"), self._signature("params.yaml"))
        cached = self._read.get("stages")
        if cached is None or cached[0] != signature:
            cached = (signature, resolve_stages(self._yaml("dvc.yaml"), self.workspace.params()))
            self._read["stages"] = cached
        return dict(cached[1])

    def stage(self, name: str) -> Stage:
        """One stage, or a sentence that names those there are."""
        stages = self.stages()
        if name not in stages:
            raise WorkspaceError(f"dvc.yaml has no stage '{name}'. It has: {', '.join(stages)}.")
        return stages[name]

    def upstream(self, name: str) -> list[str]:
        """The stages whose outputs this one reads directly."""
        deps = self.stage(name).data_deps
        return [s.name for s in self.stages().values() if any(overlap(s.out, dep) for dep in deps)]

    def in_order(self) -> list[str]:
        """All stages, upstream first."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            for parent in self.upstream(name):
                visit(parent)
            order[name] = None

        for name in self.stages():
            if name not in order:
                visit(name)
        return list(order)

    def code_version(self, asset: str) -> str:
        """12 hex digits of the stage's command and the bytes of the code it names. Imports no DVC."""
        stage = next((s for s in self.stages().values() if s.asset == asset), None)
        if stage is None:
            raise WorkspaceError(f"dvc.yaml has no stage '{asset}'.")
        missing = [dep for dep in stage.code_deps if not (self.root / dep).exists()]
        if missing:
            raise WorkspaceError(
                f"{', '.join(missing)}: named by stage '{asset}' in dvc.yaml, but not there."
            )
        return code_hash(stage.template, {d: path_md5(self.root / d) for d in stage.code_deps})

    def origins(self, name: str) -> dict[str, Any]:
        """Code and recorded inputs of a stage: together with its settings, all that decides what it makes."""
        versions = {upstream: self.recorded(upstream) for upstream in self.upstream(name)}
        return {"code": self.code_version(self.stage(name).asset), "versions": versions}

    def recorded_code_version(self, name: str) -> str | None:
        """The code version with which dvc.lock's version of this stage was made."""
        entry, stage = self.lock_entry(name), self.stage(name)
        if entry is None:
            return None
        template = stage.template if entry.get("cmd") == stage.cmd else str(entry.get("cmd"))
        code = {d["path"]: d.get("md5") for d in entry.get("deps", []) if d["path"] not in stage.data_deps}
        return code_hash(template, code)

    # -- what is recorded ---------------------------------------------------------------------------

    def lock_entry(self, name: str) -> dict[str, Any] | None:
        """What dvc.lock says of a stage: cmd, deps, params, outs."""
        lock = self._yaml("dvc.lock") if (self.root / "dvc.lock").exists() else {}
        return (lock.get("stages") or {}).get(name)

    def recorded(self, name: str) -> str | None:
        """The version (`<md5>.dir`) that dvc.lock records for a stage, or None."""
        entry = self.lock_entry(name)
        outs = (entry or {}).get("outs") or [{}]
        return outs[0].get("md5")

    # -- what has changed ---------------------------------------------------------------------------

    def changes(self, name: str) -> list[str]:
        """Why the recorded version of a stage is not current, one sentence each; empty if it is."""
        declared = self.stage(name)
        self.refuse_undeclared(name)
        if self.lock_entry(name) is None:
            return [f"{declared.out} was never made"]
        with self._repo() as repo:
            stage = _dvc_stage(repo, name)
            reasons = []
            for dep in stage.deps:
                for status in dep.status().values():
                    reasons += _reasons(dep.def_path, status)
            for out in stage.outs:
                reasons += [_out_reason(out.def_path, status) for status in out.status().values()]
            if stage.changed_stage():
                reasons.append("its command in dvc.yaml changed")
        return reasons

    def changed_inputs(self, name: str) -> list[str]:
        """The data dependencies that are not what dvc.lock says the stage's version was made from."""
        with self._repo() as repo:
            deps = _dvc_stage(repo, name).deps
            inputs = self.stage(name).data_deps
            return [dep.def_path for dep in deps if dep.def_path in inputs and dep.status()]

    def hash_out(self, name: str) -> str:
        """DVC's md5 of what stands in the stage's folder now; commits nothing."""
        self._require_out(self.stage(name))
        with self._repo(lock=False) as repo:
            return str(_dvc_stage(repo, name).outs[0].get_hash().value)

    def undeclared(self, name: str | None = None) -> list[str]:
        """What stands in a folder that a stage reads whole, though no stage in dvc.yaml makes it."""
        stages = self.stages()
        outs = {Path(s.out) for s in stages.values()}
        found = []
        for stage in [stages[name]] if name else stages.values():
            for dep in map(Path, stage.data_deps):
                made_here = {out for out in outs if dep in out.parents}
                if made_here and (self.root / dep).is_dir():
                    found += [
                        str(dep / p.name)
                        for p in (self.root / dep).iterdir()
                        if dep / p.name not in made_here
                    ]
        return sorted(set(found))

    def refuse_undeclared(self, name: str | None = None) -> None:
        """Raise a sentence if something undeclared would silently join the input of `name` (or of any stage)."""
        for path in self.undeclared(name):
            crawl = Path(path).name
            raise WorkspaceError(
                f"{path} stands where everything is read as input, but params.yaml names no crawl '{crawl}'. "
                f"Name it under 'crawls', or take it out of the workspace with 'stemma retire {crawl}' "
                f"(DVC keeps its version)."
            )

    def cached(self, md5: str) -> Path:
        """Where DVC's cache holds (or would hold) the object of an md5."""
        if "cache" not in self._read:
            with self._repo(lock=False) as repo:
                self._read["cache"] = ((0, 0, 0), repo.cache.local.path)
        return Path(self._read["cache"][1], md5[:2], md5[2:])

    def cached_listing(self, version: str) -> dict[str, str] | None:
        """md5 by relative path of a version's files, as DVC's cache lists them; None if it holds no good list."""
        path = self.cached(version)
        if not path.is_file() or file_md5(path) != version.removesuffix(".dir"):
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}

    # -- to record ----------------------------------------------------------------------------------

    def inside_repro(self, name: str | None = None) -> bool:
        """Whether `dvc repro` of this project started us (to make stage `name`)."""
        running = os.environ.get("DVC_STAGE", "")
        if not running:
            return False
        root = os.environ.get("DVC_ROOT")
        if root and Path(root).resolve() != self.root:
            return False
        return name is None or running.rpartition(":")[2] == name

    def commit(self, name: str) -> str:
        """Record the stage's folder, inputs, code, parameters and command in dvc.lock; return its version.

        As `dvc commit -f STAGE`, also for a stage never run before: afterwards `dvc status` is clean and
        `dvc repro` skips the stage. Inside `dvc repro` of this stage it only hashes.
        """
        stage = self.stage(name)
        self._require_out(stage)
        if self.inside_repro(name):
            return self.hash_out(name)
        self.refuse_undeclared(name)
        from dvc.exceptions import DvcException

        with self.workspace.plain_errors(f"dvc commit {name}"), self._repo() as repo:
            try:
                self._drop_damaged(repo, name)
                self._unless_busy(lambda: _commit(_dvc_stage(repo, name)))
            except DvcException as error:
                raise WorkspaceError(
                    f"DVC could not record {stage.out}: {error}. It stays in the workspace; mend that and run again."
                ) from error
        version = self.recorded(name)
        if version is None:
            raise WorkspaceError(f"DVC recorded no version of {name} in dvc.lock. Is dvc.lock writable?")
        return version

    def retire_crawl(self, crawl: str) -> list[str]:
        """Take a crawl out of params.yaml and of the workspace, only if DVC's cache holds its every byte.

        Returns the folders removed. Naming the crawl again and `dvc checkout` brings it back.
        """
        folders = [p for p in self._crawl_folders(crawl) if p.exists()]
        if not folders and crawl not in (self.workspace.params().get("crawls") or {}):
            raise WorkspaceError(f"There is no crawl '{crawl}', neither in params.yaml nor in data/.")
        with self._repo() as repo:
            for folder in folders:
                lost = _not_cached(repo, folder)
                if lost:
                    raise WorkspaceError(
                        f"{self.workspace.short(folder)} is not removed: {lost} is not in DVC's cache, so it could "
                        f"not come back. Commit it first ('dvc commit'), or remove the folder by hand."
                    )
        self.workspace.drop_crawl(crawl)
        for folder in folders:
            with self.workspace.plain_errors(self.workspace.short(folder)):
                remove_tree(folder)
        return [self.workspace.short(folder) for folder in folders]

    # -- git ----------------------------------------------------------------------------------------

    def git_state(self) -> GitState:
        """The commit, the files changed since (dvc.lock and provenance/ do not count), and the origin."""
        commit = self._git("rev-parse", "HEAD").strip()
        lines = self._git("status", "--porcelain", "--no-renames").splitlines() if commit else []
        paths = [line[3:].strip('"') for line in lines]
        dirty = tuple(p for p in paths if p != "dvc.lock" and not p.startswith("provenance/"))
        remote = self._git("remote", "get-url", "origin").strip() if commit else ""
        return GitState(commit, dirty, re.sub(r"(?<=://)[^/@]*@", "", remote))

    def git_commit(self) -> str:
        """The commit's hash, with '-dirty' behind it if files were changed since; '' without a repository."""
        state = self.git_state()
        return state.commit + ("-dirty" if state.dirty else "")

    def _git(self, *args: str) -> str:
        try:
            done = subprocess.run(["git", *args], cwd=self.root, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git on this machine
            return ""
        return done.stdout if done.returncode == 0 else ""

    # -- inside -------------------------------------------------------------------------------------

    def _crawl_folders(self, crawl: str) -> list[Path]:
        """The folders of a crawl, whether or not params.yaml still names it."""
        assets = {s.asset: s.out for s in self.stages().values() if s.partition is not None}
        parents = {(self.root / out).parent for out in assets.values()}
        parents |= {self.root / "data" / "raw_crawl", self.root / "data" / "cleaned_corpus"}
        return sorted(parent / crawl for parent in parents)

    def _require_out(self, stage: Stage) -> None:
        if not (self.root / stage.out).exists():
            raise WorkspaceError(f"{stage.out} is not there. Make it: stemma materialize {stage.name}")

    def _signature(self, name: str) -> tuple[int, int, int]:
        try:
            stat = os.stat(self.root / name)
        except FileNotFoundError:
            raise WorkspaceError(
                f"{self.root / name}: not there. Run Stemma in the project's folder (the one with dvc.yaml)."
            ) from None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def _yaml(self, name: str) -> dict[str, Any]:
        signature = self._signature(name)
        cached = self._read.get(name)
        if cached is None or cached[0] != signature:
            cached = self._read[name] = (signature, read_yaml(self.root / name))
        return cached[1]

    @contextlib.contextmanager
    def _repo(self, lock: bool = True) -> Iterator[Repo]:
        """DVC's repository, its lock waited for without end."""
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        from dvc.repo import Repo, lock_repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # "Updating lock file" is not news
        with Repo(str(self.root), _wait_for_lock=True) as repo:
            if lock:
                with lock_repo(repo):
                    yield repo
            else:
                yield repo

    def _unless_busy(self, action: Any) -> Any:
        """Run `action`, waiting while a running `dvc repro` holds paths that it needs."""
        from dvc.lock import LockError

        while True:
            try:
                return action()
            except LockError as error:
                if self.inside_repro():
                    raise WorkspaceError(
                        f"'dvc repro' is making {os.environ['DVC_STAGE']} and started us; another stage that shares "
                        f"paths with it cannot be recorded meanwhile ({error})."
                    ) from error
                time.sleep(BUSY_SECONDS)

    def _drop_damaged(self, repo: Repo, name: str) -> None:
        """Remove cache objects of this output whose bytes are not what their name says."""
        out = _dvc_stage(repo, name).outs[0]
        _, _, obj = out._build(out.cache, out.fs_path, out.fs, out.hash_name, ignore=out.dvcignore)
        for relative, oid in _entries(obj):
            cached = Path(out.cache.oid_to_path(oid))
            here = Path(out.fs_path, *relative)
            if not cached.exists() or (here.exists() and os.path.samefile(cached, here)):
                continue
            if file_md5(cached) != oid.removesuffix(".dir"):
                cached.chmod(0o644)
                cached.unlink()


# -- talking with DVC --------------------------------------------------------------------------------


def _dvc_stage(repo: Repo, name: str) -> Any:
    """DVC's own stage, found from whatever folder we run in."""
    return repo.stage.load_one(path=os.path.join(repo.root_dir, "dvc.yaml"), name=name)


def _commit(stage: Any) -> None:
    """As `dvc commit -f`, but from any folder: DVC's run cache, left out here, works in the project's only."""
    stage.save(run_cache=False)
    stage.commit()
    stage.dvcfile.dump_stages([stage], update_pipeline=False)


def _entries(obj: Any) -> Iterable[tuple[tuple[str, ...], str]]:
    """Relative path parts and object id of a DVC object and, if a folder, of all in it."""
    from dvc_data.hashfile.tree import Tree

    yield (), obj.oid
    if isinstance(obj, Tree):
        for parts, _, info in obj:
            yield parts, info.value


def _not_cached(repo: Repo, folder: Path) -> str | None:
    """The first file of a folder that DVC's cache does not hold with the same bytes, or None."""
    odb = repo.cache.local
    files = {str(f.relative_to(folder)): file_md5(f) for f in sorted(folder.rglob("*")) if f.is_file()}
    for path, md5 in [*files.items(), (".", dir_md5(files))]:
        cached = Path(odb.oid_to_path(md5))
        if not cached.exists() or file_md5(cached) != md5.removesuffix(".dir"):
            return str(folder.name if path == "." else Path(folder.name) / path)
    return None


def _reasons(path: str, status: Any) -> list[str]:
    words = {
        "modified": "changed",
        "deleted": "is missing",
        "new": "is new",
        "not in cache": "is not in the cache",
    }
    if isinstance(status, Mapping):  # parameters: {'tokenizer': 'modified'}
        return [f"{name} in {path} {words.get(what, what)}" for name, what in status.items()]
    return [f"{path} {words.get(status, status)}"]


def _out_reason(path: str, status: str) -> str:
    return {
        "deleted": f"{path} is missing",
        "modified": f"{path} is not what dvc.lock records",
        "not in cache": f"{path} is not in DVC's cache",
    }.get(status, f"{path} is {status}")
