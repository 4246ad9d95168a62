"""What the tests of cleaning share: the files of a small crawl, and the hashes of all that a run has written."""

import hashlib
from pathlib import Path


def files_of(folder: Path) -> list[tuple[str, Path]]:
    """(name, path) of a crawl's archives."""
    return [(path.name, path) for path in sorted(folder.glob("*.warc.gz"))]


def content(folder: Path) -> dict[str, str]:
    """SHA-256 by name of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
