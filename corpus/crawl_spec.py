"""What `params.yaml` or `--crawl` says about a crawl, checked: `{source: NAME, …}` with the settings of that source.

Notable: loads no library, so that every command can check all crawls at its start.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.settings import names_of, nearest, read_settings
from corpus.sources.commoncrawl import CommonCrawl
from corpus.sources.sample import Sample
from corpus.sources.source import Source
from corpus.sources.text import TextDataset
from corpus.sources.urls import UrlList
from corpus.sources.warc_files import WarcFiles

SOURCES: dict[str, type[Source]] = {  # name of the source -> the class of its settings, a frozen dataclass
    "sample": Sample,
    "warc": WarcFiles,
    "commoncrawl": CommonCrawl,
    "urls": UrlList,
    "text": TextDataset,
}


def check_spec(name: str, spec: Mapping[str, Any] | None) -> Source:
    """The source that section `crawls.NAME` of params.yaml describes.

    Raises ConfigError for an unknown source or setting, a missing one, or a value that cannot be used. Looks at no
    file: `Source.check` does.
    """
    where = f"params.yaml, crawls.{name}"
    if not isinstance(spec, Mapping | None):
        raise ConfigError(f"{where}: expected settings by name, not {spec!r}.")
    settings = dict(spec or {})
    source = settings.pop("source", None)
    if source not in SOURCES:
        raise ConfigError(f"{where}: the source is {source!r}; it must be one of {', '.join(SOURCES)}.")
    cls: type[Any] = SOURCES[source]
    known = names_of(cls)
    for unknown in settings:
        if unknown not in known:
            raise ConfigError(
                f"{where}: unknown {unknown}.{nearest(str(unknown), known)} "
                f"The source {source!r} has: {', '.join(known)}."
            )
    for field in fields(cls):
        if field.default is MISSING and settings.get(field.name) in (None, "", []):
            raise ConfigError(
                f"{where}: the source {source!r} needs {field.name!r}, {field.metadata['needs']}."
            )
    return read_settings(cls, settings, where)


def parse_crawl(argument: str, root: Path) -> tuple[str, dict[str, Any]]:
    """The name and the spec of the crawl that `--crawl` was given: `NAME=SOURCE:…` or `NAME=GLOB` of WARC files.

    Raises ConfigError, or MissingError for files that are not there, before params.yaml names a crawl that cannot be
    built.
    """
    name, _, what = argument.partition("=")
    if not name or not what:
        raise ConfigError(
            f"--crawl {argument}: write NAME=GLOB, as in news='warcs/*.warc.gz', or NAME=SOURCE:…, "
            "as in cc=commoncrawl:CC-MAIN-2026-45:10"
        )
    source, colon, rest = what.partition(":")
    shorthand = getattr(SOURCES.get(source), "shorthand", None) if colon else None
    spec = {"source": source, **shorthand(rest)} if shorthand else {"source": "warc", "paths": what}
    check_spec(name, spec).check(name, root)
    return name, spec
