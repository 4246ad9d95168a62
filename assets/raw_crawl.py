"""The crawl as it came."""

from __future__ import annotations

from assets.plots import bars
from assets.stage import Evidence, StageRun, stage


@stage(
    group="corpus",
    kinds={"warc"},
    checks={"not_empty": "The crawl holds at least one record."},
)
def raw_crawl(run: StageRun) -> Evidence:
    """A source of params.yaml's `crawls`: the built-in sample web, or any glob of WARC, ARC or WET files.

    Files that lie elsewhere are not copied: the manifest names each with its size, SHA-256 and number of records.
    """
    from corpus.crawl import build_crawl, read_manifest

    build_crawl(run.partition, run.params, run.out, run.root)
    files = read_manifest(run.out)
    records = sum(f.records for f in files)
    return Evidence(
        numbers={"files": len(files), "records": records, "bytes": sum(f.bytes for f in files)},
        plot=bars({f.file.rsplit("/", 1)[-1]: f.records for f in files[:20]}, x="records"),
        tables={"manifest": _table(files[:50])},
        checks={"not_empty": records > 0},
        check_notes={"not_empty": f"{records:,} records in {len(files):,} files"},
    )


def _table(files) -> str:
    rows = [f"| {f.file} | {f.records:,} | {f.bytes:,} | `{f.sha256[:16]}…` |" for f in files]
    return "\n".join(["| file | records | bytes | sha256 |", "|---|---:|---:|---|", *rows])
