"""The project's folder: its parameters, where outputs and work in progress are, and who may write now.

Notable:
* a version appears at data/… by rename only, so nobody ever reads half of one;
* one writer a stage: the lock is the kernel's (fcntl), so it ends with its holder, however that died;
* params.yaml is edited with its comments kept;
* a full disk or a read-only folder is reported as one sentence (`plain_errors`).
Imports nothing heavy: definitions.py and the command line load it.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import WorkspaceError
from core.files import remove_tree, write_atomically
from resources.stage_lock import hold
from resources.yaml_file import parse_yaml, read_yaml

# DVC reads a dot as a level and forbids other punctuation in the names it makes of these.
CRAWL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_crawl_name(name: str) -> None:
    """Raise WorkspaceError for a name that DVC could not carry or that is not one folder."""
    if not CRAWL_NAME.fullmatch(name):
        raise WorkspaceError(
            f"'{name}' cannot name a crawl: use letters, digits, '-' and '_', as in CC-MAIN-2026-45."
        )


class Workspace:
    """The folder that holds dvc.yaml, and what is in it."""

    def __init__(self, root: Path | str):
        self.root = Path(root).resolve()

    # -- parameters ---------------------------------------------------------------------------------

    @property
    def params_file(self) -> Path:
        return self.root / "params.yaml"

    def params(self) -> dict[str, Any]:
        """params.yaml as plain values, read with the parser that DVC reads it with."""
        if not self.params_file.is_file():
            raise WorkspaceError(
                f"{self.params_file}: not there. Run Stemma in the project's folder (the one with dvc.yaml)."
            )
        return read_yaml(self.params_file)

    def section(self, name: str) -> dict[str, Any]:
        """The section of params.yaml for one stage; of `raw_crawl@sample`, the spec of the crawl `sample`."""
        asset, _, partition = name.partition("@")
        params = self.params()
        if asset == "raw_crawl" and partition:
            crawls = params.get("crawls") or {}
            if partition not in crawls:
                raise WorkspaceError(
                    f"params.yaml names no crawl '{partition}' (it has: {', '.join(crawls) or 'none'}). "
                    f"Add one with 'stemma materialize --crawl {partition}=GLOB'."
                )
            return dict(crawls[partition] or {})
        if asset not in params:
            raise WorkspaceError(
                f"params.yaml has no section '{asset}'. Add '{asset}: {{}}' for the defaults; "
                f"the sections there are: {', '.join(params)}."
            )
        return dict(params[asset] or {})

    def set_crawl(self, name: str, spec: Mapping[str, Any]) -> bool:
        """Name a crawl in params.yaml, comments kept. Returns whether the file changed."""
        check_crawl_name(name)

        def put(params: dict[str, Any]) -> None:
            if not params.get("crawls"):
                params["crawls"] = {}
            if params["crawls"].get(name) != dict(spec):
                params["crawls"][name] = dict(spec)

        return self._edit_params(put)

    def drop_crawl(self, name: str) -> bool:
        """Take a crawl out of params.yaml (its data stays: see DvcLedger.retire_crawl)."""
        return self._edit_params(lambda params: (params.get("crawls") or {}).pop(name, None))

    def apply_preset(self, name: str) -> list[str]:
        """Lay params/NAME.yaml over params.yaml, comments kept.

        Mappings are merged, everything else is replaced; a crawl set to null is taken out.
        Returns one line a changed value, `tokenizer.vocab_size: 4096 -> 1024`.
        """
        preset, changed = self._preset(name), []
        self._edit_params(lambda params: changed.extend(_overlay(params, preset)))
        return changed

    def params_with(self, preset: str | None) -> dict[str, Any]:
        """What params.yaml would hold with params/PRESET.yaml merged into it; nothing is written."""
        params = copy.deepcopy(self.params())
        if preset:
            _overlay(params, self._preset(preset))
        return params

    def _preset(self, name: str) -> dict[str, Any]:
        file = self.root / "params" / f"{name}.yaml"
        if not file.is_file():
            known = sorted(path.stem for path in file.parent.glob("*.yaml"))
            raise WorkspaceError(
                f"There is no preset '{name}' (params/{name}.yaml). There are: {', '.join(known) or 'none'}."
            )
        return read_yaml(file)

    def _edit_params(self, edit: Callable[[dict[str, Any]], object]) -> bool:
        from ruamel.yaml import YAML

        yaml = YAML()  # round trip: comments, order and quotes stay
        yaml.width = 110
        yaml.preserve_quotes = True
        before = self.params()
        document = yaml.load(self.params_file.read_text(encoding="utf-8"))
        if document is None:
            document = {}
        edit(document)
        out = io.StringIO()
        yaml.dump(document, out)
        if parse_yaml(out.getvalue()) == before:
            return False
        with self.plain_errors("params.yaml"):
            write_atomically(self.params_file, out.getvalue())
        return True

    # -- places -------------------------------------------------------------------------------------

    def out_path(self, stage: str) -> Path:
        """Where the version of `cleaned_corpus@sample` is: data/cleaned_corpus/sample."""
        asset, _, partition = stage.partition("@")
        return self.root / "data" / asset / partition if partition else self.root / "data" / asset

    def work_path(self, stage: str, key: str) -> Path:
        """Where the stage works: units, checkpoints, metrics. Made if missing; `key` finds it again."""
        path = self.root / "work" / stage / key
        with self.plain_errors(stage):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def discard_work(self, stage: str) -> None:
        """Throw away all work in progress of a stage, after its version is recorded."""
        path = self.root / "work" / stage
        if path.exists():
            with self.plain_errors(stage):
                remove_tree(path)

    def publish(self, done: Path, out: Path) -> Path:
        """Put the finished folder at `out` by rename, in place of the version that was there.

        The old version may be read-only links into DVC's cache: it is moved away and unlinked, never
        written to. It waits outside data/, for DVC hashes data/cleaned_corpus as one folder. Killed
        between the two renames, a re-run finds `done` complete and publishes it.
        """
        if not done.is_dir() or not any(done.iterdir()):
            raise WorkspaceError(f"{self.short(done)}: nothing to publish, the folder is empty or missing.")
        self.check_writable(out)
        with self.plain_errors(self.short(out)):
            out.parent.mkdir(parents=True, exist_ok=True)
            if os.stat(done).st_dev != os.stat(out.parent).st_dev:
                done = self._bring_over(done, out)
            trash = None
            if out.exists() or out.is_symlink():
                trash = _trash_for(self.root / "work", out)
                os.rename(out, trash)
            os.rename(done, out)
            if trash is not None:
                remove_tree(trash)
        return out

    def _bring_over(self, done: Path, out: Path) -> Path:
        """Copy to the disk of `out` (beside data/, not in it), so that the rename is one."""
        here = Path(tempfile.mkdtemp(prefix=".publish-", dir=self.root))
        if os.stat(here).st_dev != os.stat(out.parent).st_dev:
            raise WorkspaceError(
                f"{self.short(out)}: data/ is on another disk than the project, and a version cannot be "
                "renamed across disks. Mount work/ and data/ from the same disk, or link the whole project."
            )
        shutil.copytree(done, here / "out")
        remove_tree(done)
        return here / "out"

    def short(self, path: Path) -> str:
        """The path as the user knows it, relative to the project."""
        path = Path(path)
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    # -- disk ---------------------------------------------------------------------------------------

    def check_writable(self, path: Path) -> None:
        """Raise WorkspaceError unless `path` can be made or replaced."""
        folder = path if path.is_dir() else path.parent
        while not folder.exists():
            folder = folder.parent
        for place in {folder, path.parent if path.parent.exists() else folder}:
            if not place.is_dir():
                raise WorkspaceError(f"{self.short(place)} is a file, but a folder is needed there. Move it.")
            if not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
                raise WorkspaceError(
                    f"{self.short(place)} cannot be written (read-only). Nothing was changed. "
                    f"Allow it with 'chmod u+w {self.short(place)}', or mount it writable, and run again."
                )

    def check_space(self, n_bytes: int, what: str = "this stage") -> None:
        """Raise WorkspaceError unless `n_bytes` are free on the project's disk."""
        free = shutil.disk_usage(self.root).free
        if free < n_bytes:
            raise WorkspaceError(
                f"{what} needs about {n_bytes / 1e9:,.1f} GB and the disk of {self.root} has "
                f"{free / 1e9:,.1f} GB left. Free some: old work is in work/; 'dvc gc -w' drops old versions."
            )

    @contextlib.contextmanager
    def plain_errors(self, what: str) -> Iterator[None]:
        """Turn a full disk or a read-only place into a WorkspaceError that says what to do."""
        try:
            yield
        except OSError as error:
            place = self.short(Path(os.fsdecode(error.filename))) if error.filename else what
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = (
                    f"{what}: the disk is full while writing {place}. The previous version is untouched. "
                    "Free some space (work/ holds work in progress, 'dvc gc -w' drops old versions) "
                    "and run again: it resumes."
                )
            elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                message = (
                    f"{what}: {place} cannot be written ({error.strerror}). The previous version is untouched. "
                    f"Allow it with 'chmod -R u+w {place}', or mount it writable, and run again."
                )
            else:
                raise
            raise WorkspaceError(message) from error

    # -- one writer a stage -------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(
        self, stage: str, say: Callable[[str], None] | None = None, timeout: float | None = None
    ) -> Iterator[None]:
        """Hold the stage alone: waits for other writers and says who they are (see resources/stage_lock.py)."""
        path = self.root / "work" / ".locks" / f"{stage}.lock"
        with self.plain_errors(stage):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with hold(path, stage, say, timeout):
            yield


def _overlay(base: dict[str, Any], over: Mapping[str, Any], prefix: str = "") -> list[str]:
    changed = []
    for key, value in over.items():
        name = f"{prefix}{key}"
        old = base.get(key)
        if prefix == "crawls." and value is None:
            if key in base:
                del base[key]
                changed.append(f"{name}: taken out")
        elif isinstance(value, Mapping) and isinstance(old, dict):
            changed += _overlay(old, value, f"{name}.")
        elif key not in base or old != value or type(old) is not type(value):
            if key not in base or old != value:
                changed.append(
                    f"{name}: {'(default)' if key not in base else _plain(old)} -> {_plain(value)}"
                )
            base[key] = copy.deepcopy(value)
    return changed


def _plain(value: Any) -> str:
    return json.dumps(value, default=str)


def _trash_for(work: Path, out: Path) -> Path:
    """Where the old version of `out` goes: on its disk, outside data/. A killed publish's rest goes."""
    if not work.is_dir() or os.stat(work).st_dev != os.stat(out.parent).st_dev:
        work = out.parent.parent
    trash = work / ".trash" / f"{out.parent.name}@{out.name}"
    if trash.exists() or trash.is_symlink():
        remove_tree(trash)
    trash.parent.mkdir(parents=True, exist_ok=True)
    return trash
