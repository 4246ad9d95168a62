"""What dvc.lock records of every stage, and whether that still is so, without importing DVC.

A stage is current when its command, its parameters, the bytes of its inputs and the bytes of its output are those that
dvc.lock records, and DVC's cache holds the output. A test holds the answers to those of `dvc status`.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.hashing import file_md5
from resources.chain import CODE_FILE, PARAMS_FILE, Chain, Stage
from resources.hash_cache import HashCache
from resources.yaml_file import read_yaml

HASH_CACHE = Path("work", ".cache", "hashes.sqlite")


class LockFile:
    """The stages of dvc.lock, read again whenever the file changes."""

    def __init__(self, root: Path):
        self.root = root
        self.hashes = HashCache(root / HASH_CACHE)
        self._read: tuple[tuple[int, int, int], dict[str, Any]] | None = None
        self._cache_folder: Path | None = None

    def entry(self, name: str) -> dict[str, Any] | None:
        """What dvc.lock says of a stage: cmd, deps, params, outs."""
        try:
            stat = os.stat(self.root / "dvc.lock")
        except FileNotFoundError:
            return None
        signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if self._read is None or self._read[0] != signature:
            self._read = (signature, read_yaml(self.root / "dvc.lock").get("stages") or {})
        return self._read[1].get(name)

    def version(self, name: str) -> str | None:
        """The version (`<md5>.dir`) that dvc.lock records for a stage, or None."""
        outs = (self.entry(name) or {}).get("outs") or [{}]
        return outs[0].get("md5")

    def deps(self, name: str) -> dict[str, str | None]:
        """The recorded md5 of each dependency, by path."""
        return {dep["path"]: dep.get("md5") for dep in (self.entry(name) or {}).get("deps") or []}

    def params(self, name: str, file: str = PARAMS_FILE) -> dict[str, Any]:
        """The recorded parameters of a file, by name."""
        return ((self.entry(name) or {}).get("params") or {}).get(file) or {}

    def changes(self, stage: Stage) -> list[str]:
        """Why the recorded version of a stage is not current, one sentence each; empty if it is."""
        entry = self.entry(stage.name)
        if entry is None:
            return [f"{stage.out} was never made"]
        reasons = [*self._changed_deps(stage), *self._changed_params(stage), *self._changed_out(stage)]
        if entry.get("cmd") != stage.cmd:
            reasons.append("its command in dvc.yaml changed")
        return reasons

    def changed_inputs(self, stage: Stage) -> list[str]:
        """The data dependencies that are not what dvc.lock says the stage's version was made from."""
        recorded = self.deps(stage.name)
        return [dep for dep in stage.data_deps if self.hash_of(dep) != recorded.get(dep)]

    def hash_of(self, path: str) -> str | None:
        """DVC's md5 of what is at a path of the project now, or None if nothing is."""
        try:
            return self.hashes.version(self.root / path)
        except FileNotFoundError:
            return None

    def cached(self, md5: str) -> Path:
        """Where DVC's cache holds (or would hold) the object of an md5."""
        if self._cache_folder is None:
            self._cache_folder = cache_folder(self.root)
        return self._cache_folder / "files" / "md5" / md5[:2] / md5[2:]

    def cached_listing(self, version: str) -> dict[str, str] | None:
        """md5 by relative path of a version's files, as DVC's cache lists them; None if it holds no good list."""
        path = self.cached(version)
        if not path.is_file() or file_md5(path) != version.removesuffix(".dir"):
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}

    def _changed_deps(self, stage: Stage) -> Iterator[str]:
        recorded = self.deps(stage.name)
        for dep in (*stage.data_deps, *stage.code_deps):
            found = self.hash_of(dep)
            if found is None:
                yield f"{dep} is missing"
            elif dep not in recorded:
                yield f"{dep} is new"
            elif found != recorded[dep]:
                yield f"{dep} changed"

    def _changed_params(self, stage: Stage) -> Iterator[str]:
        for file, values in ((PARAMS_FILE, stage.param_values), (CODE_FILE, stage.code_params)):
            recorded = self.params(stage.name, file)
            for name in sorted({*values, *recorded} & set(stage.params)):
                if name not in values:
                    yield f"{name} in {file} is missing"
                elif name not in recorded:
                    yield f"{name} in {file} is new"
                elif values[name] != recorded[name]:
                    yield f"{name} in {file} changed"

    def _changed_out(self, stage: Stage) -> Iterator[str]:
        version, found = self.version(stage.name), self.hash_of(stage.out)
        if found is None:
            yield f"{stage.out} is missing"
        elif found != version:
            yield f"{stage.out} is not what dvc.lock records"
        elif stage.versioned and not self._in_cache(found):
            yield f"{stage.out} is not in DVC's cache"

    def _in_cache(self, version: str) -> bool:
        path = self.cached(version)
        if not path.is_file():
            return False
        with suppress(ValueError, KeyError):
            files = json.loads(path.read_bytes()) if version.endswith(".dir") else []
            return all(self.cached(file["md5"]).is_file() for file in files)
        return False


def code_version(template: str, code: Mapping[str, str | None], code_params: Mapping[str, Any]) -> str:
    """12 hex digits over a stage's command, the md5 of each code file it names and its versions in code.yaml."""
    decides: list[Any] = [template, sorted(code.items())]
    if code_params:
        decides.append(sorted(code_params.items()))
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]


def recorded_code_version(lock: LockFile, chain: Chain, name: str) -> str | None:
    """The code version with which dvc.lock's version of this stage was made."""
    entry, stage = lock.entry(name), chain.stage(name)
    if entry is None:
        return None
    template = stage.template if entry.get("cmd") == stage.cmd else str(entry.get("cmd"))
    code = {path: md5 for path, md5 in lock.deps(name).items() if path not in stage.data_deps}
    return code_version(template, code, lock.params(name, CODE_FILE))


def cache_folder(root: Path) -> Path:
    """The folder of DVC's cache: `cache.dir` of its configuration (system, user, project, copy), or its default."""
    users = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "dvc")
    systems = Path((os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")[0], "dvc")
    folders = [
        os.environ.get("DVC_SYSTEM_CONFIG_DIR") or systems,
        os.environ.get("DVC_GLOBAL_CONFIG_DIR") or users,
    ]
    found = None
    for place in (
        *(Path(f, "config") for f in folders),
        root / ".dvc" / "config",
        root / ".dvc" / "config.local",
    ):
        settings = configparser.ConfigParser(interpolation=None)
        with suppress(configparser.Error):
            # DVC indents its keys, which configparser would read as continued lines.
            text = place.read_text("utf-8") if place.is_file() else ""
            settings.read_string("\n".join(line.strip() for line in text.splitlines()))
            if folder := settings.get("cache", "dir", fallback=None):
                found = place.parent / os.path.expanduser(folder)
    return found or root / ".dvc" / "cache"
