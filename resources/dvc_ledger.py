"""The ledger of versions: the chain that dvc.yaml declares, what dvc.lock records, and committing to it through DVC.

Dagster runs the stages, this file commits them; it never runs a command. Notable:
* only committing and retiring import DVC; everything else is read from its files (resources/chain.py, dvc_lock.py);
* an asset's version is DVC's own md5 of its folder (`<md5>.dir`);
* inside `dvc repro` (DVC_STAGE is set) committing is DVC's work: we only hash;
* before a commit, damaged cache objects of the same content are thrown out, for DVC would keep them and
  link them over the good new files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.code import Closure
from core.errors import WorkspaceError
from core.files import remove_tree
from core.hashing import file_md5
from resources.chain import CODE_FILE, Chain, Stage, read_chain
from resources.code_versions import check_code, code_reader
from resources.dvc_hashes import dir_md5
from resources.dvc_lock import LockFile, code_version, recorded_code_version
from resources.workspace import Workspace, check_crawl_name
from resources.yaml_file import read_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo

BUSY_SECONDS = 0.5  # DVC's read-write lock does not wait, so we ask again


class DvcLedger:
    """The versions of a project's stages: what is declared, what is recorded, what has changed, what to record."""

    def __init__(self, root: Path | str):
        self.root = Path(root).resolve()
        self.workspace = Workspace(self.root)
        self.lock = LockFile(self.root)
        self._chain: tuple[object, Chain] | None = None

    # -- what is declared ---------------------------------------------------------------------------

    @property
    def chain(self) -> Chain:
        """The stages of dvc.yaml, read again whenever it, params.yaml or code.yaml changes."""
        code = self.root / CODE_FILE
        signature = (
            self._signature("dvc.yaml"),
            self._signature("params.yaml"),
            code.exists() and self._signature(CODE_FILE),
        )
        if self._chain is None or self._chain[0] != signature:
            document, params = read_yaml(self.root / "dvc.yaml"), self.workspace.params()
            self._chain = (
                signature,
                read_chain(document, params, read_yaml(code) if code.exists() else None),
            )
        return self._chain[1]

    def check_code(self) -> None:
        """Raise a WorkspaceError with the command that fixes it unless code.yaml is that of the code here."""
        check_code(self.root, self.chain, self.workspace.params())

    def code_version(self, asset: str) -> str:
        """12 hex digits of the stage's command and the code that decides it."""
        stage = self.chain.partitions(asset)[0]
        missing = [dep for dep in stage.code_deps if not (self.root / dep).exists()]
        if missing:
            raise WorkspaceError(
                f"{', '.join(missing)}: named by stage '{asset}' in dvc.yaml, but not there."
            )
        code = {dep: self.lock.hash_of(dep) for dep in stage.code_deps}
        return code_version(stage.template, code, stage.code_params)

    def closure(self, stage: Stage) -> Closure:
        """The code that decides a stage, and the libraries which that imports."""
        return code_reader(self.root).closure(stage.entries)

    def origins(self, name: str) -> dict[str, Any]:
        """Code and recorded inputs of a stage: together with its settings, all that decides what it makes."""
        versions = {upstream: self.recorded(upstream) for upstream in self.chain.upstream(name)}
        return {"code": self.code_version(self.chain.stage(name).asset), "versions": versions}

    # -- what is recorded ---------------------------------------------------------------------------

    def recorded(self, name: str) -> str | None:
        """The version (`<md5>.dir`) that dvc.lock records for a stage, or None."""
        return self.lock.version(name)

    def recorded_code_version(self, name: str) -> str | None:
        """The code version with which dvc.lock's version of this stage was made."""
        return recorded_code_version(self.lock, self.chain, name)

    # -- what has changed ---------------------------------------------------------------------------

    def changes(self, name: str) -> list[str]:
        """Why the recorded version of a stage is not current, one sentence each; empty if it is."""
        stage = self.chain.stage(name)
        self.refuse_undeclared(name)
        return self.lock.changes(stage)

    def changed_inputs(self, name: str) -> list[str]:
        """The data dependencies that are not what dvc.lock says the stage's version was made from."""
        return self.lock.changed_inputs(self.chain.stage(name))

    def hash_out(self, name: str) -> str:
        """DVC's md5 of the stage's folder as it is now; commits nothing."""
        stage = self.chain.stage(name)
        found = self.lock.hash_of(stage.out)
        if found is None:
            raise _no_output(stage)
        return found

    def undeclared(self, name: str | None = None) -> list[str]:
        """What is in a folder that a stage reads whole, though no stage in dvc.yaml writes it."""
        stages = self.chain.stages
        outs = {Path(s.out) for s in stages.values()}
        found = []
        for stage in [self.chain.stage(name)] if name else stages.values():
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
        """Raise a WorkspaceError if something undeclared would silently join the input of `name` (or of any stage)."""
        for path in self.undeclared(name):
            crawl = Path(path).name
            raise WorkspaceError(
                f"{path} stands where everything is read as input, but params.yaml names no crawl '{crawl}'. "
                f"Name it under 'crawls', or take it out of the workspace with 'stemma retire {crawl}' "
                f"(DVC keeps its version)."
            )

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
        stage = self.chain.stage(name)
        if not (self.root / stage.out).exists():
            raise _no_output(stage)
        if self.inside_repro(name):
            return self.hash_out(name)
        self.refuse_undeclared(name)
        from dvc.exceptions import DvcException

        with self.workspace.plain_errors(f"dvc commit {name}"), self._repo() as repo:
            try:
                _drop_damaged(repo, name)
                self._unless_busy(lambda: _commit(_dvc_stage(repo, name)))
            except DvcException as error:
                raise WorkspaceError(
                    f"DVC could not record {stage.out}: {error}. It stays in the workspace; fix that and run again."
                ) from error
        version = self.recorded(name)
        if version is None:
            raise WorkspaceError(f"DVC recorded no version of {name} in dvc.lock. Is dvc.lock writable?")
        return version

    def commit_checks(self) -> None:
        """Record that the stages which only check (dvc.yaml: `code`) hold for the present files, for `dvc status`."""
        if not self.inside_repro():
            for name, stage in self.chain.every.items():
                if not stage.versioned and self.lock.changes(stage):
                    self.commit(name)

    def retire_crawl(self, crawl: str) -> list[str]:
        """Take a crawl out of params.yaml and of the workspace, only if DVC's cache holds its every byte.

        Returns the folders removed. Naming the crawl again and `dvc checkout` brings it back.
        """
        check_crawl_name(crawl)
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

    # -- inside -------------------------------------------------------------------------------------

    def _crawl_folders(self, crawl: str) -> list[Path]:
        """The folders of a crawl, whether or not params.yaml still names it."""
        assets = {s.asset: s.out for s in self.chain.stages.values() if s.partition is not None}
        parents = {(self.root / out).parent for out in assets.values()}
        parents |= {self.root / "data" / "raw_crawl", self.root / "data" / "cleaned_corpus"}
        return sorted(parent / crawl for parent in parents)

    def _signature(self, name: str) -> tuple[int, int, int]:
        try:
            stat = os.stat(self.root / name)
        except FileNotFoundError:
            raise WorkspaceError(
                f"{self.root / name}: not there. Run Stemma in the project's folder (the one with dvc.yaml)."
            ) from None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    @contextlib.contextmanager
    def _repo(self) -> Iterator[Repo]:
        """DVC's repository with its lock held, waited for without end."""
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        from dvc.repo import Repo, lock_repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # "Updating lock file" is not news
        with Repo(str(self.root), _wait_for_lock=True) as repo, lock_repo(repo):
            yield repo

    def _unless_busy(self, action: Callable[[], None]) -> None:
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


# -- talking with DVC --------------------------------------------------------------------------------


def _no_output(stage: Stage) -> WorkspaceError:
    return WorkspaceError(f"{stage.out} is not there. Make it: stemma materialize {stage.name}")


def _dvc_stage(repo: Repo, name: str) -> Any:
    """DVC's own stage, found from whatever folder we run in."""
    return repo.stage.load_one(path=os.path.join(repo.root_dir, "dvc.yaml"), name=name)


def _commit(stage: Any) -> None:
    """As `dvc commit -f`, but from any folder: DVC's run cache, left out here, works in the project's only."""
    stage.save(run_cache=False)
    stage.commit()
    stage.dvcfile.dump_stages([stage], update_pipeline=False)


def _drop_damaged(repo: Repo, name: str) -> None:
    """Remove cache objects of this output whose bytes are not what their name says."""
    out = _dvc_stage(repo, name).outs[0]
    if not out.use_cache:
        return
    _, _, obj = out._build(out.cache, out.fs_path, out.fs, out.hash_name, ignore=out.dvcignore)
    for relative, oid in _entries(obj):
        cached = Path(out.cache.oid_to_path(oid))
        here = Path(out.fs_path, *relative)
        if not cached.exists() or (here.exists() and os.path.samefile(cached, here)):
            continue
        if file_md5(cached) != oid.removesuffix(".dir"):
            cached.chmod(0o644)
            cached.unlink()


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
