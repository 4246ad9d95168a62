"""Why a page is, or is not, in the corpus: the ledger's rows for its URL, in every crawl that is cleaned here.

Imports neither DVC nor Dagster nor anything of training, and reads of a ledger one column and the rows that match, so
that the answer takes about half a second, most of it to start Python and import pyarrow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import WorkspaceError
from resources.dvc_ledger import DvcLedger

Row = dict[str, Any]  # of a ledger (corpus.ledger.LEDGER_SCHEMA), with what `why` adds
DOCUMENT_FIELDS = ("language", "language_score", "n_bytes", "sha256")


def why(root: Path, url: str) -> list[Row]:
    """The ledger's rows for a URL (a record id; a whole host, as a bare name), crawl by crawl; empty if unseen.

    Each row is the ledger's, with these added: `corpus_version` (DVC's md5 of the cleaned corpus), `meaning` (the
    rule in words), `duplicate_url` (the URL of the kept page), and for a kept page `document`: its language, score,
    bytes and sha256. Raises WorkspaceError if no crawl is cleaned here, because then "not found" would mean nothing.
    """
    from corpus.ledger_search import rows_for_url

    rows: list[Row] = []
    corpora = _corpora(root)
    for folder, version in corpora:
        found = rows_for_url([folder], url)
        rows += [{**row, "corpus_version": version} for row in found]
    rows = _as_trained(rows, Path(root) / "data" / "training_set")
    return _explained(rows, {folder.name: folder for folder, _ in corpora})


def nearest(root: Path, url: str) -> list[str]:
    """URLs of the same host, or hosts of a similar name, for a URL that was not found."""
    from corpus.ledger_search import near_urls

    return near_urls([folder for folder, _ in _corpora(root)], url)


def page_text(root: Path, row: Row) -> str:
    """The text of the page of a ledger's row, extracted again from its crawl file.

    Raises FileNotFoundError if the crawl is no longer here.
    """
    from corpus.report.samples import read_text, sources_of

    text, note = read_text(row, sources_of(Path(root), row["crawl"]))
    return text or f"({note})"


def _as_trained(rows: list[Row], training_set: Path) -> list[Row]:
    """The rows; those of documents that the training set leaves out are replaced by its own ledger's."""
    from corpus.ledger_search import find_rows

    if not rows or not any((training_set / "ledger").glob("*.parquet")):
        return rows
    dropped = find_rows(training_set, "record_id", [row["record_id"] for row in rows])
    left_out = {(row["crawl"], row["record_id"]): row for row in dropped}
    return [row | left_out.get((row["crawl"], row["record_id"]), {}) for row in rows]


def _explained(rows: list[Row], folders: dict[str, Path]) -> list[Row]:
    """Add what is in other files: the rule's meaning, the document, the page that was kept instead."""
    from corpus.rules.meaning import meaning

    urls, documents = _kept_urls(rows, folders), _documents(rows, folders)
    for row in rows:
        document = documents.get((row["crawl"], row["record_id"]))
        row["meaning"] = meaning(row["rule"]) if row["rule"] else ""
        row["duplicate_url"] = urls.get(row["duplicate_of"])
        row["document"] = {name: document[name] for name in DOCUMENT_FIELDS} if document else None
    return rows


def _kept_urls(rows: list[Row], folders: dict[str, Path]) -> dict[str, str]:
    """URL by record id of the pages kept instead of these, which may be pages of another crawl."""
    from corpus.ledger_search import find_rows

    wanted = {row["duplicate_of"] for row in rows if row["duplicate_of"]}
    found = find_rows(list(folders.values()), "record_id", wanted) if wanted else []
    return {row["record_id"]: row["url"] for row in found}


def _documents(rows: list[Row], folders: dict[str, Path]) -> dict[tuple[str, str], Row]:
    """The documents of the kept pages among these, by crawl and record id."""
    from corpus.ledger_search import find_rows

    documents: dict[tuple[str, str], Row] = {}
    for crawl in {row["crawl"] for row in rows if row["outcome"] == "kept"} & set(folders):
        ids = [row["record_id"] for row in rows if row["outcome"] == "kept" and row["crawl"] == crawl]
        if (folders[crawl] / "documents").is_dir():
            found = find_rows(folders[crawl], "record_id", ids, "documents")
            documents |= {(crawl, document["record_id"]): document for document in found}
    return documents


def _corpora(root: Path) -> list[tuple[Path, str | None]]:
    """(folder, version that dvc.lock records) of every crawl that is cleaned here."""
    ledger = DvcLedger(root)
    stages = [s for s in ledger.chain.stages.values() if s.asset == "cleaned_corpus"]
    made = [s for s in stages if (ledger.root / s.out).is_dir()]
    if not made:
        raise WorkspaceError(
            "No crawl is cleaned yet, so there is no ledger to search. "
            "Clean one: stemma materialize cleaned_corpus"
        )
    return [(Path(root) / stage.out, ledger.recorded(stage.name)) for stage in made]
