"""Hashes of the files of versions, computed again only for files that changed.

A file whose size, times and inode are as they were when it was hashed is not read again, as DVC and git do it. `stemma
audit` does not use this: it reads every byte.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from core.hashing import file_md5
from core.progress import progress_bar
from resources.dvc_hashes import dir_md5, files_of

SETTLED_SECONDS = 2.0  # a file changed more recently could change once more within the clock's resolution
SILENT_BYTES = 200_000_000  # hashed in under a second or so: no progress bar below it
_Key = tuple[str, int, int, int, int]


class HashCache:
    """MD5s by file, kept in a SQLite file of the project; without a place to keep them, each is computed."""

    def __init__(self, file: Path):
        self._file = file

    def version(self, path: Path) -> str:
        """DVC's md5 of a file, or of a folder (`<md5>.dir`). Raises FileNotFoundError."""
        if path.is_file():
            return self._md5s([path])[path]
        if not path.is_dir():
            raise FileNotFoundError(path)
        md5s = self._md5s(files_of(path))
        return dir_md5({str(file.relative_to(path)): md5 for file, md5 in md5s.items()})

    def _md5s(self, files: Iterable[Path]) -> dict[Path, str]:
        keys = {file: _key(file) for file in files}
        known = self._known(keys.values())
        missing = [file for file, key in keys.items() if key not in known]
        size = sum(keys[file][1] for file in missing)
        fresh: dict[_Key, str] = {}
        with progress_bar(size, "hashing", "B", unit_scale=True, disable=size < SILENT_BYTES) as bar:
            for file in missing:
                fresh[keys[file]] = file_md5(file)
                bar.update(keys[file][1])
        self._remember(fresh)
        return {file: (known | fresh)[key] for file, key in keys.items()}

    def _known(self, keys: Iterable[_Key]) -> dict[_Key, str]:
        found = {}
        if self._file.exists():
            with suppress(sqlite3.Error):
                connection = sqlite3.connect(self._file, timeout=30)
                for key in keys:
                    query = (
                        "SELECT md5 FROM hashes WHERE path=? AND size=? AND mtime=? AND ctime=? AND inode=?"
                    )
                    if row := connection.execute(query, key).fetchone():
                        found[key] = str(row[0])
                connection.close()
        return found

    def _remember(self, fresh: dict[_Key, str]) -> None:
        settled = (time.time() - SETTLED_SECONDS) * 1e9
        rows = [(*key, md5) for key, md5 in fresh.items() if max(key[2], key[3]) < settled]
        if not rows:
            return
        with suppress(sqlite3.Error, OSError):  # a cache that cannot be written is no reason to stop
            self._file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._file, timeout=30)
            with connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size, mtime, ctime, inode, md5)"
                )
                connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?, ?)", rows)
            connection.close()


def _key(file: Path) -> _Key:
    stat = os.stat(file)
    return (os.path.abspath(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
