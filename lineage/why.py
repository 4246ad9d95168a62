"""Why a page is, or is not, in the corpus: the ledger's rows for its URL, in every crawl that stands here.

Imports neither DVC nor Dagster nor anything of training, and of a ledger it reads one column and the rows that
match: the answer is there in about half a second, most of which is Python starting.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.dvc_ledger import DvcLedger
from resources.workspace import WorkspaceError

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {"kept": "green", "dropped": "yellow", "failed": "red"}


def why(root: Path, url: str) -> list[dict[str, Any]]:
    """The ledger's rows for a URL (a record id; a whole host, as a bare name), crawl by crawl; empty if unseen.

    Each row is the ledger's, with these added: `corpus_version` (DVC's md5 of the cleaned corpus), `meaning` (the
    rule in words), `duplicate_url` (the URL of the kept page), and for a kept page `document`: its language, score,
    bytes and sha256. Raises WorkspaceError if no cleaned corpus stands here, for then "not found" would mean nothing.
    """
    from corpus.ledger_search import rows_for_url

    rows, corpora = [], _corpora(root)
    for folder, version in corpora:
        found = rows_for_url([folder], url)
        rows += [{**row, "corpus_version": version} for row in found]
    rows = _as_trained(rows, Path(root) / "data" / "training_set")
    return _explained(rows, {folder.name: folder for folder, _ in corpora})


def _as_trained(rows: list[dict[str, Any]], training_set: Path) -> list[dict[str, Any]]:
    """The rows, those of documents that the training set leaves out as its own ledger has them."""
    from corpus.ledger_search import find_rows

    if not rows or not any((training_set / "ledger").glob("*.parquet")):
        return rows
    gone = find_rows(training_set, "record_id", [row["record_id"] for row in rows])
    left_out = {(row["crawl"], row["record_id"]): row for row in gone}
    return [row | left_out.get((row["crawl"], row["record_id"]), {}) for row in rows]


def nearest(root: Path, url: str) -> list[str]:
    """URLs of the same host, or hosts of a like name, for somebody whose URL was not found."""
    from corpus.ledger_search import near_urls

    return near_urls([folder for folder, _ in _corpora(root)], url)


def page_text(root: Path, row: dict[str, Any]) -> str:
    """The text of the page of a ledger's row, extracted again from the crawl file it stands in.

    Raises FileNotFoundError where the crawl is no longer here.
    """
    from corpus.report.samples import read_text, sources_of

    text, note = read_text(row, sources_of(Path(root), row["crawl"]))
    return text or f"({note})"


def print_rows(
    url: str, rows: list[dict[str, Any]], console: Console | None = None, near: list[str] | None = None
) -> None:
    """Print what became of a page: one block a row, first the verdict, then where its bytes are."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console()
    if not rows:
        console.print(
            f"[bold]{escape(url)}[/] was in none of the crawls here: no record of it was read, so it was neither "
            "kept nor dropped.",
            soft_wrap=True,
        )
        if near:
            console.print("Did you mean:")
        for other in near or []:
            console.print(f"        {escape(other)}", soft_wrap=True)
        return
    for row in rows:
        colour = COLOURS.get(row["outcome"], "white")
        console.print(f"[{colour}]{row['outcome']:<8}[/][bold]{escape(row['url'])}[/]", soft_wrap=True)
        for line in _lines(row):
            console.print(f"        {escape(line)}", soft_wrap=True)
        if "text" in row:
            console.print(f"\n{escape(row['text'])}\n", soft_wrap=True)


def _explained(rows: list[dict[str, Any]], folders: dict[str, Path]) -> list[dict[str, Any]]:
    """Add what only other files know: the rule's meaning, the document, the page that was kept instead."""
    from corpus.ledger_search import find_rows
    from corpus.rules.meaning import meaning

    kept, twins = {}, {}
    wanted = {row["duplicate_of"] for row in rows if row["duplicate_of"]}
    if wanted:  # a page of another crawl may be the one that stays
        twins = {
            row["record_id"]: row["url"] for row in find_rows(list(folders.values()), "record_id", wanted)
        }
    for crawl in {row["crawl"] for row in rows if row["outcome"] == "kept"} & set(folders):
        ids = [row["record_id"] for row in rows if row["outcome"] == "kept" and row["crawl"] == crawl]
        if (folders[crawl] / "documents").is_dir():
            found = find_rows(folders[crawl], "record_id", ids, "documents")
            kept |= {(crawl, document["record_id"]): document for document in found}
    shown = ("language", "language_score", "n_bytes", "sha256")
    for row in rows:
        document = kept.get((row["crawl"], row["record_id"]))
        row["meaning"] = meaning(row["rule"]) if row["rule"] else ""
        row["duplicate_url"] = twins.get(row["duplicate_of"])
        row["document"] = {name: document[name] for name in shown} if document else None
    return rows


def _lines(row: dict[str, Any]) -> Iterator[str]:
    from corpus.rules.meaning import reason

    if row.get("rule"):
        yield reason(row)
    if row.get("meaning"):
        yield row["meaning"]
    if row.get("detail"):
        yield str(row["detail"])
    if row.get("duplicate_of"):
        yield f"kept in its place: {row.get('duplicate_url') or row['duplicate_of']}"
    if row.get("document"):
        about = row["document"]
        yield (
            f"a document of {about['n_bytes']:,} bytes in '{about['language']}' "
            f"(certainty {about['language_score']:.2f}), sha256 {about['sha256'][:12]}"
        )
    end = row["warc_offset"] + row["warc_length"]
    yield f"crawl {row['crawl']}, {row['warc_file']}, bytes {row['warc_offset']:,} to {end:,}"
    yield f"record {row['record_id']}, corpus {str(row.get('corpus_version') or 'unrecorded')[:12]}"


def _corpora(root: Path) -> list[tuple[Path, str | None]]:
    """(folder, version that dvc.lock records) of every cleaned crawl that stands here."""
    ledger = DvcLedger(root)
    stages = [s for s in ledger.stages().values() if s.asset == "cleaned_corpus"]
    made = [s for s in stages if (ledger.root / s.out).is_dir()]
    if not made:
        raise WorkspaceError(
            "No crawl is cleaned yet, so there is no ledger to ask. Make one: stemma materialize cleaned_corpus"
        )
    return [(Path(root) / stage.out, ledger.recorded(stage.name)) for stage in made]
