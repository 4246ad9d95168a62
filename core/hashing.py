"""Hashes of bytes, files and folders, each way of computing one in one place."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class FileDigests:
    """What one reading of a file gives: MD5 (DVC's), SHA-256 (provenance's), size in bytes."""

    md5: str
    sha256: str
    bytes: int


def text_sha256(text: str) -> str:
    """SHA-256 of a text's UTF-8, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes, as hex: DVC's name for them. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def file_digests(path: Path) -> FileDigests:
    """MD5, SHA-256 and size of a file, read once. Raises OSError."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
            size += len(chunk)
    return FileDigests(md5.hexdigest(), sha256.hexdigest(), size)


def folder_sha256(folder: Path) -> str:
    """One SHA-256 over names and contents of all files of a folder, such as a model or a tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()
