"""The crawl as it was fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from assets.plots import bars
from assets.stage import Evidence, StageRun, stage

if TYPE_CHECKING:
    from corpus.manifest import WarcFile


@stage(
    group="corpus",
    kinds={"warc"},
    checks={"not_empty": "The crawl holds at least one record."},
)
def raw_crawl(run: StageRun) -> Evidence:
    """A source of params.yaml's `crawls`: the sample web, WARC files by glob, Common Crawl, URLs, or text datasets.

    Files that are elsewhere are not copied: the manifest names each with its size, SHA-256 and number of records.
    What could not be fetched is listed in `fetch-log.jsonl` with the reason.
    """
    from corpus.crawl import build_crawl, not_fetched
    from corpus.manifest import read_manifest

    previous = run.root / "data" / "raw_crawl" / run.crawl
    build_crawl(run.crawl, run.params, run.out, run.root, work=run.work / "fetch", previous=previous)
    files, missing = read_manifest(run.out), not_fetched(run.out)
    records = sum(f.records for f in files)
    return Evidence(
        numbers={
            "files": len(files),
            "records": records,
            "bytes": sum(f.bytes for f in files),
            **({"not_fetched": missing.total()} if missing else {}),
        },
        plot=bars({f.file.rsplit("/", 1)[-1]: f.records for f in files[:20]}, x="records"),
        tables={"manifest": _table(files[:50]), **({"not fetched": _reasons(missing)} if missing else {})},
        checks={"not_empty": records > 0},
        check_notes={"not_empty": f"{records:,} records in {len(files):,} files"},
    )


def _reasons(missing: Counter[str]) -> str:
    rows = [f"| {reason} | {count:,} |" for reason, count in missing.most_common()]
    return "\n".join(["| why | how many |", "|---|---:|", *rows])


def _table(files: Sequence[WarcFile]) -> str:
    rows = [f"| {f.file} | {f.records:,} | {f.bytes:,} | `{f.sha256[:16]}…` |" for f in files]
    return "\n".join(["| file | records | bytes | sha256 |", "|---|---:|---:|---|", *rows])
