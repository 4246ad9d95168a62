"""Files of a Common Crawl, by crawl id: a listing is read, some of its files are fetched into the crawl's folder.

Notable: with `bytes` only the beginning of each file is fetched, so that a trial costs megabytes. Which files are
taken depends on the listing and the settings only. Layout: https://commoncrawl.org/get-started.
"""

import gzip
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from core.errors import ConfigError
from core.files import write_json_lines
from core.progress import progress_bar
from corpus.sources.download import Download, fetch_all
from corpus.sources.remote import USER_AGENT, PermanentFetchError, RequestPolicy
from corpus.sources.source import (
    FETCH_LOG,
    FETCHED,
    BuildContext,
    FetchedFiles,
    link_or_copy,
    local_files,
    require_at_least,
)

BASE = "https://data.commoncrawl.org"  # or s3://commoncrawl, from within AWS us-east-1
KINDS = ("warc", "wet")


@dataclass(frozen=True)
class CommonCrawl:
    """Which files of which Common Crawl, and how to ask for them."""

    crawl: str = field(  # the crawl's id
        metadata={"needs": "an id such as CC-MAIN-2026-45 (index.commoncrawl.org lists them)"}
    )
    files: int = 1  # how many
    first: int = 0  # number of the first in the listing
    seed: int | None = None  # take them spread over the listing by this seed instead
    kind: str = "warc"  # warc (pages, about 1 GB a file) or wet (Common Crawl's own plain text)
    bytes: int | None = None  # fetch only so many of each file
    base: str = BASE  # where from: HTTPS or an fsspec URL
    allow_missing: int = (
        0  # files that may be missing for good before the crawl fails; fetch-log.jsonl lists them
    )
    connections: int = 2  # at the same time
    tries: int = 12  # failures in a row without a new byte before a file is given up
    stall_seconds: float = 60  # a connection that carries less than 1 kB/s for so long is given up
    first_wait: float = 1  # seconds before the second try; each further wait is twice as long
    longest_wait: float = 120  # seconds
    user_agent: str = USER_AGENT

    def __post_init__(self) -> None:
        require_at_least(self, files=1, first=0, bytes=1000, allow_missing=0, connections=1, tries=1)
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        if "://" not in self.base:
            raise ValueError(f"base is {self.base!r}; it must be a URL such as {BASE}.")

    @classmethod
    def shorthand(cls, argument: str) -> dict[str, Any]:
        """CC-MAIN-2026-45 or CC-MAIN-2026-45:10"""
        crawl, _, files = argument.partition(":")
        if files and not files.isdigit():
            raise ConfigError(f"commoncrawl:{argument}: write commoncrawl:CRAWL:FILES, FILES a number.")
        return {"crawl": crawl, "files": int(files or 1)}

    def check(self, name: str, root: Path) -> None:
        """Nothing on this machine to look for."""

    def build(self, context: BuildContext) -> FetchedFiles:
        """Fetch the files, except those that the last version or an interrupted try has.

        Raises PermanentFetchError, or ConfigError where the listing is shorter than the settings ask for.
        """
        paths, listed = self._choose(context)
        urls = {Path(path).name: f"{self.base.rstrip('/')}/{path}" for path in paths}
        outcomes = self._fetch(context, urls)
        for name, outcome in outcomes.items():
            if outcome == FETCHED:
                link_or_copy(context.work / name, context.out / name)
        rows = [{"url": urls[name], "outcome": outcomes[name], "file": name} for name in urls]
        write_json_lines(context.out / FETCH_LOG, rows)
        origins = {name: self._origin(url) for name, url in urls.items()}
        description = f"Common Crawl {self.crawl}, {len(urls):,} of {listed:,} {self.kind.upper()} files"
        return FetchedFiles(description, local_files(context.out, origins))

    def _policy(self) -> RequestPolicy:
        return RequestPolicy(
            self.user_agent,
            self.connections,
            self.tries,
            self.stall_seconds,
            self.first_wait,
            self.longest_wait,
        )

    def _origin(self, url: str) -> str:
        return url if self.bytes is None else f"{url}#bytes=0-{self.bytes - 1}"

    def _choose(self, context: BuildContext) -> tuple[list[str], int]:
        """The paths to fetch, in the listing's order, and how many the listing has."""
        listing = context.work / f"{self.kind}.paths.gz"
        url = f"{self.base.rstrip('/')}/crawl-data/{self.crawl}/{listing.name}"
        if not listing.exists():
            try:
                fetch_all([Download(url, listing)], self._policy(), on_end=_raise)
            except PermanentFetchError as error:
                if error.reason != "status 404":
                    raise
                raise PermanentFetchError(
                    url,
                    error.reason,
                    f"there is no crawl {self.crawl!r} there, or it has no {self.kind.upper()} files. "
                    "https://index.commoncrawl.org lists the crawls",
                ) from None
        paths = gzip.decompress(listing.read_bytes()).decode().split()
        if self.first + self.files > len(paths):
            raise ConfigError(
                f"crawl {context.name}: {self.crawl} has {len(paths):,} {self.kind.upper()} files, and "
                f"{self.files:,} from number {self.first:,} on were asked for. Lower 'files' or 'first'."
            )
        if self.seed is None:
            return paths[self.first : self.first + self.files], len(paths)
        return [paths[n] for n in sorted(Random(self.seed).sample(range(len(paths)), self.files))], len(paths)

    def _fetch(self, context: BuildContext, urls: dict[str, str]) -> dict[str, str]:
        """Fetch all files into context.work; each file's outcome, FETCHED or why it cannot be fetched."""
        for name, url in urls.items():
            if not (context.work / name).exists() and (old := context.reusable(self._origin(url))):
                link_or_copy(old, context.work / name)
        outcomes = dict.fromkeys(urls, FETCHED)
        wanted = [
            Download(url, context.work / name, self.bytes)
            for name, url in urls.items()
            if not (context.work / name).exists()
        ]
        with progress_bar(None, f"fetching {self.crawl}", "B", unit_scale=True, disable=not wanted) as bar:
            bar.set_postfix_str(f"{len(urls) - len(wanted)}/{len(urls)} files")
            fetch_all(wanted, self._policy(), bar.update, partial(self._on_end, urls, outcomes, bar))
        return outcomes

    def _on_end(
        self,
        urls: dict[str, str],
        outcomes: dict[str, str],
        bar: Any,
        file: Download,
        error: PermanentFetchError | None,
    ) -> None:
        if error:
            outcomes[file.to.name] = error.reason
            missing = sum(outcome != FETCHED for outcome in outcomes.values())
            if missing > self.allow_missing:
                raise error
        done = sum((file.to.parent / name).exists() for name in urls)
        bar.set_postfix_str(f"{done}/{len(urls)} files")


def _raise(file: Download, error: PermanentFetchError | None) -> None:
    if error:
        raise error
