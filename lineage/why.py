"""Why a page is, or is not, in the corpus: the ledger's rows for its URL, in every crawl that stands here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.dvc_ledger import DvcLedger
from resources.workspace import WorkspaceError

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {"kept": "green", "dropped": "yellow", "failed": "red"}


def why(root: Path, url: str) -> list[dict[str, Any]]:
    """The ledger's rows for a URL (or for a whole host, given as a bare name), crawl by crawl; empty if unseen.

    Each row is the ledger's, with `corpus_version` (DVC's md5 of the cleaned corpus) added. Raises
    WorkspaceError if no cleaned corpus stands here, for then "not found" would mean nothing.
    """
    from corpus.ledger import rows_for_url

    rows = []
    for stage in _corpora(DvcLedger(root)):
        version = DvcLedger(root).recorded(stage.name)
        found = rows_for_url([Path(root) / stage.out], url)
        rows += [{**row, "corpus_version": version} for row in found]
    return rows


def print_rows(url: str, rows: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print what became of a page: one block a row, first the verdict, then where its bytes are."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console()
    if not rows:
        console.print(
            f"[bold]{escape(url)}[/] was in none of the crawls here: no record of it was read, so it was neither "
            "kept nor dropped. Look for its host alone if you are unsure of the path.",
            soft_wrap=True,
        )
        return
    for row in rows:
        colour = COLOURS.get(row["outcome"], "white")
        console.print(f"[{colour}]{row['outcome']:<8}[/][bold]{escape(row['url'])}[/]", soft_wrap=True)
        for line in _lines(row):
            console.print(f"        {escape(line)}", soft_wrap=True)


def _lines(row: dict[str, Any]) -> list[str]:
    lines = []
    reason = ": ".join(str(row[part]) for part in ("stage", "rule") if row.get(part))
    if row.get("value") is not None:
        reason += f", measured {row['value']:g}"
    if row.get("threshold") is not None:
        reason += f" against a limit of {row['threshold']:g}"
    if reason:
        lines.append(reason)
    if row.get("detail"):
        lines.append(str(row["detail"]))
    if row.get("duplicate_of"):
        lines.append(f"the same as {row['duplicate_of']}, which was kept")
    end = row["warc_offset"] + row["warc_length"]
    lines.append(f"crawl {row['crawl']}, {row['warc_file']}, bytes {row['warc_offset']:,} to {end:,}")
    lines.append(f"record {row['record_id']}, corpus {str(row.get('corpus_version') or 'unrecorded')[:12]}")
    return lines


def _corpora(ledger: DvcLedger) -> list[Any]:
    stages = [s for s in ledger.stages().values() if s.asset == "cleaned_corpus"]
    made = [s for s in stages if (ledger.root / s.out).is_dir()]
    if not made:
        raise WorkspaceError(
            "No crawl is cleaned yet, so there is no ledger to ask. Make one: stemma materialize cleaned_corpus"
        )
    return made
