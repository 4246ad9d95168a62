"""What the process that fetches a list of URLs is given: the URLs, where its output goes, and how to fetch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FetchTask:
    """`segment`: the WARC file to append pages to; `log`: its JSON lines, one a URL. Times in seconds, sizes in bytes.

    The rest is as in corpus.sources.urls.UrlList.
    """

    urls: list[str]
    segment: Path
    log: Path
    edition: str
    user_agent: str
    delay: float
    per_host: int
    connections: int
    timeout: float
    max_bytes: int
    retries: int
    max_redirects: int
    longest_delay: float
    allow_private: bool
    verify_tls: bool
