"""A page's URL: its host, a canonical form that is the same for all captures of a page, and block lists."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
# Query fields that say where a visitor came from, not which page it is.
TRACKING = re.compile(
    r"(?:utm_\w+|gclid|fbclid|msclkid|dclid|yclid|mc_[ce]id|igshid|_ga|ref_src)(?:=|$)", re.I
)
WORD = re.compile(r"[a-z0-9]+")


def host_of(url: str) -> str:
    """The lower-case host of a URL without port or user; '' where there is none or it cannot be read."""
    try:
        return (urlsplit(url.strip()).hostname or "").rstrip(".")
    except ValueError:
        return ""


def canonical_url(url: str) -> str:
    """One form for all URLs of the same page: no scheme, fragment, default port or tracking fields.

    Path and the order of the query stay as they are, because they may matter to a server.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        return url.strip()
    host = (parts.hostname or "").rstrip(".")
    if port and port != DEFAULT_PORTS.get(parts.scheme):
        host = f"{host}:{port}"
    query = "&".join(field for field in parts.query.split("&") if field and not TRACKING.match(field))
    return f"//{host}{parts.path or '/'}" + (f"?{query}" if query else "")


class UrlFilter:
    """Which URLs are blocked, and why. A look-up takes microseconds whatever the lists' length: they are sets."""

    def __init__(
        self,
        blocked_domains: Iterable[str] = (),
        blocked_words: Iterable[str] = (),
        suspect_words: Iterable[str] = (),
    ):
        """`blocked_domains` include their subdomains; words are whole words of host, path or query. One of the
        `blocked_words` or two of the `suspect_words` block a URL."""
        self.domains = frozenset(d.strip().lower().strip(".") for d in blocked_domains)
        self.words = frozenset(w.strip().lower() for w in blocked_words)
        self.suspects = frozenset(w.strip().lower() for w in suspect_words)

    def reject(self, url: str) -> tuple[str, str] | None:
        """(rule, detail) of the first rule that the URL breaks, or None."""
        host = host_of(url)
        if not host or not url.strip().lower().startswith(("http://", "https://", "ftp://")):
            return "not_a_web_address", url[:80]
        labels = host.split(".")
        for start in range(len(labels)):
            domain = ".".join(labels[start:])
            if domain in self.domains:
                return "blocked_domain", domain
        words = set(WORD.findall(url.lower()))
        blocked, suspects = sorted(self.words & words), sorted(self.suspects & words)
        if blocked:
            return "blocked_word", blocked[0]
        if len(suspects) > 1:
            return "suspect_words", " ".join(suspects)
        return None
