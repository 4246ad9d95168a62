"""One partition a crawl: the crawls that params.yaml names, never single WARC files."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg


def crawl_partitions(crawls: Iterable[str]) -> dg.StaticPartitionsDefinition:
    """Return the partitions of `raw_crawl` and `cleaned_corpus`, in the order in which params.yaml names them."""
    return dg.StaticPartitionsDefinition(list(crawls))
