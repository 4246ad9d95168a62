"""Rows of a ledger or of documents by URL, host or record id, and suggestions for a URL that is not there."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpus.ledger import part_files
from corpus.urls import canonical_url, host_of

DECIDES_NOTHING = "answers questions about a finished corpus"

MANY_HOSTS = 10_000


def find_rows(
    folders: Path | str | Sequence[Path | str], column: str, wanted: Iterable[str], kind: str = "ledger"
) -> list[dict[str, Any]]:
    """The rows whose `column` is one of `wanted`, in the order of files and records.

    Reads that one column, file by file in threads, and the other columns only of the row groups with a hit: a
    processor second for 4 million rows (docs/corpus-report.md).
    """
    from concurrent.futures import ThreadPoolExecutor

    values = _strings(sorted(set(wanted)))

    def search(part: str) -> list[dict[str, Any]]:
        found = []
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                hits = pc.is_in(file.read_row_group(group, [column], False)[column], value_set=values)
                if pc.any(hits).as_py():
                    found += file.read_row_group(group).filter(hits).to_pylist()
        return found

    with ThreadPoolExecutor() as pool:
        return [row for rows in pool.map(search, part_files(folders, kind)) for row in rows]


def _strings(words: Sequence[str]) -> pa.StringArray:
    """As pa.array, which loads pandas first: a quarter of a second."""
    coded = [word.encode() for word in words]
    offsets = array("i", accumulate(map(len, coded), initial=0))
    return pa.StringArray.from_buffers(len(coded), pa.py_buffer(offsets), pa.py_buffer(b"".join(coded)))


def rows_for_url(folders: Path | str | Sequence[Path | str], url: str) -> list[dict[str, Any]]:
    """The ledger's rows of a URL, of a record id (urn:…), or of a whole host when given a bare host name.

    A URL that is not in the ledger as written is compared without scheme, 'www.', last slash and tracking fields.
    """
    key = url.strip().strip("<>")
    if key.startswith("urn:"):
        return find_rows(folders, "record_id", [key])
    if _is_host(key):
        return find_rows(folders, "host", [key.lower()])
    rows = find_rows(folders, "url", [key])
    return rows or [row for row in _same_host(folders, key) if _loose_form(row["url"]) == _loose_form(key)]


def near_urls(folders: Path | str | Sequence[Path | str], url: str, most: int = 5) -> list[str]:
    """Suggestions for a URL that is not in the ledger: similar URLs of its host, or similar hosts."""
    from difflib import get_close_matches

    key = url.strip()
    pages = sorted({row["url"] for row in _same_host(folders, key)})
    if pages:
        return get_close_matches(key, pages, most, cutoff=0.3) or pages[:most]
    columns = (pq.read_table(part, columns=["host"])["host"] for part in part_files(folders, "ledger"))
    hosts = sorted({host for column in columns for host in pc.unique(column).to_pylist() if host})
    wanted = _host(key)
    if len(hosts) > MANY_HOSTS:  # comparing all would take a minute for each million
        hosts = [host for host in hosts if host[:6] == wanted[:6]][:MANY_HOSTS]
    return get_close_matches(wanted, hosts, most, cutoff=0.7)


def _is_host(text: str) -> bool:
    """Whether this is a bare host name and not a URL."""
    return "/" not in text and ":" not in text


def _host(url: str) -> str:
    return host_of(url if "://" in url else f"//{url}")


def _loose_form(url: str) -> str:
    return (
        canonical_url(url if "://" in url else f"//{url}").removeprefix("//").removeprefix("www.").rstrip("/")
    )


def _same_host(folders: Path | str | Sequence[Path | str], url: str) -> list[dict[str, Any]]:
    host = _host(url).removeprefix("www.")
    return find_rows(folders, "host", [host, f"www.{host}"]) if host else []
