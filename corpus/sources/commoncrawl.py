"""Files of a Common Crawl, by crawl id: a listing is read, some of its files are fetched into the crawl's folder.

Notable: with `bytes` only the beginning of each file is fetched, so that a trial costs megabytes. Which files are
taken depends on the listing and the knobs only. Layout: https://commoncrawl.org/get-started.
"""

import gzip
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from corpus.sources.download import Wanted, fetch_all
from corpus.sources.remote import USER_AGENT, CannotFetch, Manners
from corpus.sources.source import (
    FETCH_LOG,
    FETCHED,
    Brought,
    Place,
    at_least,
    local_files,
    place_file,
    write_rows,
)

BASE = "https://data.commoncrawl.org"  # or s3://commoncrawl, from within AWS us-east-1
KINDS = ("warc", "wet")


@dataclass(frozen=True)
class CommonCrawl:
    """Which files of which crawl, and how to ask for them.

    crawl: the crawl's id. files: how many. first: number of the first in the listing. seed: take them spread over
    the listing by this seed instead. kind: warc (pages, about 1 GB a file) or wet (Common Crawl's own plain text).
    bytes: fetch only so many of each file. base: where from, HTTPS or an fsspec URL. allow_missing: how many files
    may be missing for good before the crawl fails; which they are stands in fetch-log.jsonl. connections, tries,
    stall_seconds, user_agent: see corpus.sources.remote.Manners; first_wait and longest_wait in seconds.
    """

    crawl: str = field(metadata={"needs": "an id such as CC-MAIN-2026-45 (index.commoncrawl.org lists them)"})
    files: int = 1
    first: int = 0
    seed: int | None = None
    kind: str = "warc"
    bytes: int | None = None
    base: str = BASE
    allow_missing: int = 0
    connections: int = 2
    tries: int = 12
    stall_seconds: int | float = 60
    first_wait: int | float = 1
    longest_wait: int | float = 120
    user_agent: str = USER_AGENT

    def __post_init__(self):
        at_least(self, files=1, first=0, bytes=1000, allow_missing=0, connections=1, tries=1)
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        if "://" not in self.base:
            raise ValueError(f"base is {self.base!r}; it must be a URL such as {BASE}.")

    @classmethod
    def shorthand(cls, words: str) -> dict[str, Any]:
        """CC-MAIN-2026-45 or CC-MAIN-2026-45:10"""
        crawl, _, files = words.partition(":")
        if files and not files.isdigit():
            raise ValueError(f"commoncrawl:{words}: write commoncrawl:CRAWL:FILES, FILES a number.")
        return {"crawl": crawl, "files": int(files or 1)}

    def check(self, name: str, root: Path) -> None:
        """Nothing on this machine to look for."""

    def build(self, place: Place) -> Brought:
        """Fetch the files, except those that the last version or an interrupted try has. Raises CannotFetch."""
        paths, listed = self._choose(place)
        urls = {Path(path).name: f"{self.base.rstrip('/')}/{path}" for path in paths}
        outcomes = self._fetch(place, urls)
        for name, outcome in outcomes.items():
            if outcome == FETCHED:
                place_file(place.work / name, place.out / name)
        rows = [{"url": urls[name], "outcome": outcomes[name], "file": name} for name in urls]
        write_rows(place.out / FETCH_LOG, rows)
        origins = {name: self._origin(url) for name, url in urls.items()}
        words = f"Common Crawl {self.crawl}, {len(urls):,} of {listed:,} {self.kind.upper()} files"
        return Brought(words, local_files(place.out, origins))

    def _manners(self) -> Manners:
        return Manners(
            self.user_agent,
            self.connections,
            self.tries,
            self.stall_seconds,
            self.first_wait,
            self.longest_wait,
        )

    def _origin(self, url: str) -> str:
        return url if self.bytes is None else f"{url}#bytes=0-{self.bytes - 1}"

    def _choose(self, place: Place) -> tuple[list[str], int]:
        """The paths to fetch, in the listing's order, and how many the listing has."""
        listing = place.work / f"{self.kind}.paths.gz"
        url = f"{self.base.rstrip('/')}/crawl-data/{self.crawl}/{listing.name}"
        if not listing.exists():
            try:
                fetch_all([Wanted(url, listing)], self._manners(), on_end=_raise)
            except CannotFetch as error:
                if error.reason != "status 404":
                    raise
                raise CannotFetch(
                    url,
                    error.reason,
                    f"there is no crawl {self.crawl!r} there, or it has no {self.kind.upper()} files. "
                    "https://index.commoncrawl.org lists the crawls",
                ) from None
        paths = gzip.decompress(listing.read_bytes()).decode().split()
        if self.first + self.files > len(paths):
            raise ValueError(
                f"crawl {place.name}: {self.crawl} has {len(paths):,} {self.kind.upper()} files, and {self.files:,} "
                f"from number {self.first:,} on were asked for. Lower 'files' or 'first'."
            )
        if self.seed is None:
            return paths[self.first : self.first + self.files], len(paths)
        return [paths[n] for n in sorted(Random(self.seed).sample(range(len(paths)), self.files))], len(paths)

    def _fetch(self, place: Place, urls: dict[str, str]) -> dict[str, str]:
        """Bring all files into place.work; each file's outcome, FETCHED or why it cannot be had."""
        from tqdm import tqdm

        for name, url in urls.items():
            if not (place.work / name).exists() and (old := place.kept(self._origin(url))):
                place_file(old, place.work / name)
        outcomes = dict.fromkeys(urls, FETCHED)
        wanted = [
            Wanted(url, place.work / name, self.bytes)
            for name, url in urls.items()
            if not (place.work / name).exists()
        ]
        with tqdm(
            desc=f"fetching {self.crawl}",
            unit="B",
            unit_scale=True,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
            disable=not wanted,
        ) as bar:
            bar.set_postfix_str(f"{len(urls) - len(wanted)}/{len(urls)} files")
            fetch_all(wanted, self._manners(), bar.update, partial(self._ended, urls, outcomes, bar))
        return outcomes

    def _ended(
        self,
        urls: dict[str, str],
        outcomes: dict[str, str],
        bar: Any,
        file: Wanted,
        error: CannotFetch | None,
    ) -> None:
        if error:
            outcomes[file.to.name] = error.reason
            missing = sum(outcome != FETCHED for outcome in outcomes.values())
            if missing > self.allow_missing:
                raise error
        done = sum((file.to.parent / name).exists() for name in urls)
        bar.set_postfix_str(f"{done}/{len(urls)} files")


def _raise(file: Wanted, error: CannotFetch | None) -> None:
    if error:
        raise error
