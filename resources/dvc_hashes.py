"""Hashes as DVC computes them, from the bytes themselves; DVC is not imported and its cache of hashes not asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from core.hashing import file_md5


def dir_md5(files: Mapping[str, str]) -> str:
    """DVC's version of a folder, from the md5 of each file by relative path: `<md5>.dir`."""
    listing = [{"md5": files[path], "relpath": path} for path in sorted(files)]
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


def path_md5(path: Path) -> str:
    """DVC's md5 of a file or folder, computed here from every byte (without compiled Python)."""
    if path.is_file():
        return file_md5(path)
    return dir_md5({str(f.relative_to(path)): file_md5(f) for f in files_of(path)})


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder, without Python's compiled files, as .dvcignore leaves them out."""
    return sorted(
        p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".pyc"
    )
