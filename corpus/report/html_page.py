"""The report on a cleaned crawl as one HTML page: funnel, hosts, languages, lengths, and sample pages of every rule.

    write_report(Path("data/cleaned_corpus/news"), sources, Path("reports/cleaned_corpus/news.html"))

It opens offline and has no script and no remote resource; texts of untrusted pages are escaped, behind a content
security policy, and their addresses are not links. The same corpus gives the same bytes. It is written beside the
versioned corpus, not inside: another layout of the report must not cause a model to be retrained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.files import write_atomically
from corpus import ledger
from corpus.ledger_search import find_rows
from corpus.report import charts, summary
from corpus.report.samples import PER_RULE, Drawn, draw, measured, read_texts, sources_of
from corpus.rules.meaning import YES_OR_NO, meaning, number
from corpus.rules.quality import BY_NAME

DECIDES_NOTHING = "a page for people, outside the versioned folders"
REPORTS = Path("reports") / "cleaned_corpus"  # in a project; not versioned
EXCERPT = 420  # characters of a page's text
MAX_URL = 300  # characters
TOP_HOSTS, TOP_LANGUAGES = 15, 12
NO_LIMIT = YES_OR_NO | {"http_status"}  # rules whose threshold carries no information
MOST_LIMITS = 4  # limits of one rule (they may differ by language) that are drawn; of more, none
SHOW_COUNTS = 8  # distinct values that are listed; more are drawn


def write_report(
    folder: Path,
    sources: Mapping[str, str | Path],
    out: Path,
    tokenizer: Path | None = None,
    drawn: tuple[list[Drawn], float] | None = None,
) -> Path:
    """Write the report of a cleaned corpus to `out`, by rename; return `out`.

    `sources`: the crawl's files by their names in the ledger, to read pages back from; the report names those that are
    missing. `tokenizer`: a tokenizer.json to count tokens with, else they are estimated. `drawn`: the result of
    corpus.report.samples.draw, if the caller has it. Raises MissingError where `folder` is not a cleaned corpus.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, render(folder, sources, tokenizer, drawn))
    return out


def report_of(root: Path, crawl: str) -> Path:
    """Write the report of a project's cleaned crawl to reports/cleaned_corpus/CRAWL.html; return its path.

    Counts tokens with the project's own tokenizer where there is one. Raises MissingError where the crawl is not
    cleaned.
    """
    folder, out = root / "data" / "cleaned_corpus" / crawl, root / REPORTS / f"{crawl}.html"
    tokenizer = root / "data" / "tokenizer" / "tokenizer.json"
    summary.load(folder)  # first, so that the error names what is missing
    try:
        sources = sources_of(root, crawl)
    except FileNotFoundError:
        sources = {}  # the report then notes at each page that its file is not here
    return write_report(folder, sources, out, tokenizer if tokenizer.is_file() else None)


def render(
    folder: Path,
    sources: Mapping[str, str | Path],
    tokenizer: Path | None = None,
    drawn: tuple[list[Drawn], float] | None = None,
) -> str:
    """The report as HTML text."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(_content(folder, sources, tokenizer, drawn))


def _content(
    folder: Path,
    sources: Mapping[str, str | Path],
    tokenizer: Path | None,
    drawn: tuple[list[Drawn], float] | None,
) -> dict[str, Any]:
    stats = summary.load(folder)
    pages, share = drawn or draw(folder)
    not_kept = [d for d in pages if d.rule]
    shown = _samples(folder, not_kept, sources)
    tokens = summary.tokens(stats, folder, tokenizer)
    return {
        "crawl": stats["crawl"],
        "headline": summary.headline(stats),
        "records": max(1, stats["records"]),
        "documents": stats["documents"],
        "files": len(stats["files"]),
        "config_hash": stats["config_hash"],
        "tiles": _tiles(stats, tokens),
        "funnel": [s | {"changed": summary.CHANGED.get(s["stage"], "")} for s in summary.funnel(stats)],
        "replaced": _replaced(stats),
        "outcome": summary.outcome(stats, tokens),
        "languages": _languages(stats),
        "median": summary.median_length(stats),
        "lengths": _lengths(stats),
        "scores": _scores(stats),
        "hosts": _hosts(stats),
        "hosts_sentence": f"{stats['hosts']['read']:,} hosts were read, {stats['hosts']['kept']:,} have a "
        "document that was kept.",
        "truth": summary.truth_lines(stats),
        "ids": {(d.stage, d.rule): _id(d) for d in not_kept},
        "per_rule": PER_RULE,
        "share": share,
        "rules": [_rule(folder, d, shown, stats) for d in not_kept],
        "kept": [page for d in pages if not d.rule for page in _kept(folder, d)],
    }


def _tiles(stats: Mapping[str, Any], tokens: tuple[float, str]) -> list[dict[str, str]]:
    def share(part: int) -> str:
        return f"{100 * part / max(1, stats['records']):.1f} % of all"

    return [
        {"name": "records", "value": f"{stats['records']:,}", "note": f"in {len(stats['files']):,} files"},
        {"name": "documents kept", "value": f"{stats['documents']:,}", "note": share(stats["kept"])},
        {"name": "dropped", "value": f"{stats['dropped']:,}", "note": share(stats["dropped"])},
        {"name": "failed", "value": f"{stats['failed']:,}", "note": share(stats["failed"])},
        {"name": "words", "value": summary.short(stats["words"]), "note": summary.size(stats["bytes"])},
        {"name": "tokens", "value": summary.short(tokens[0]), "note": tokens[1]},
    ]


def _replaced(stats: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in stats["pii_replaced"].items()) or "nothing"


def _languages(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    pages = [("kept", name, n) for name, n in stats["languages"].items()]
    pages += [("dropped", name, n) for name, n in stats["other_languages"].items()]
    pages.sort(key=lambda item: (-item[2], item[1]))
    whole = sum(n for _, _, n in pages) or 1
    shown = pages[:TOP_LANGUAGES]
    rest = sum(n for _, _, n in pages[TOP_LANGUAGES:])
    shown += [("dropped", f"{len(pages) - TOP_LANGUAGES} others", rest)] if rest else []
    return [{"kind": kind, "name": name, "pages": n, "share": n / whole} for kind, name, n in shown]


def _hosts(stats: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The hosts with the most documents kept and those with the most records read, with both counts of each."""
    tables = (("Most documents kept", "most_kept"), ("Most records read", "most_read"))
    rows = {name: list(stats["hosts"][name].items())[:TOP_HOSTS] for _, name in tables}
    return [(title, [{"name": host} | seen for host, seen in rows[name]]) for title, name in tables]


def _lengths(stats: Mapping[str, Any]) -> dict[str, Any]:
    bins = stats["words_per_document"]
    return charts.columns([name.rstrip("+") for name in bins], {"kept": list(bins.values())})


def _scores(stats: Mapping[str, Any]) -> dict[str, Any]:
    names = [name.rstrip("+") for name in stats["language_scores"]]
    bins = list(stats["language_scores"].values())
    series = {kind: [bin[kind] for bin in bins] for kind in ("kept", "dropped")}
    return charts.columns(names, series, every=2, root=True)


def _id(drawn: Drawn) -> str:
    return f"{drawn.stage}-{drawn.rule}-{drawn.outcome}"


def _rule(
    folder: Path, drawn: Drawn, shown: Mapping[str, dict[str, Any]], stats: Mapping[str, Any]
) -> dict[str, Any]:
    distinct = {row["threshold"] for row in drawn.rows} - {None}
    limits = [] if drawn.rule in NO_LIMIT or len(distinct) > MOST_LIMITS else sorted(distinct)
    counts = sorted(drawn.values.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{number(value)} ({pages:,} ×)" for value, pages in counts)
    of_all = measured(folder, drawn.rule) if drawn.stage == "quality" else None
    chart = charts.values(drawn.values, limits, number) if len(counts) > SHOW_COUNTS else None
    if of_all:  # recorded for every page: draw both sides of the limit
        chart = charts.values(of_all, limits, number, BY_NAME[drawn.rule].side)
    if drawn.rule == "other_language":  # its value is a certainty; what matters is the language
        chart, listed = None, ", ".join(f"{name} ({n:,} ×)" for name, n in stats["other_languages"].items())
    part = f"{100 * drawn.pages / max(1, stats['records']):.1f} %"
    return {
        "id": _id(drawn),
        "rule": drawn.rule,
        "pages": drawn.pages,
        "counted": f"{drawn.stage} · {drawn.outcome} · {drawn.pages:,} pages, {part} of all records",
        "meaning": meaning(drawn.rule),
        "limit": _limits(limits),
        "chart": chart,
        "charted": "of all pages in a wanted language" if of_all else "of the pages it dropped",
        "measured": "" if chart or drawn.rule in YES_OR_NO else listed,
        "samples": [shown[row["record_id"]] for row in drawn.rows],
    }


def _limits(limits: Sequence[float]) -> str:
    listed = ", ".join(map(number, limits))
    return "" if not limits else f"Limit {listed}." if len(limits) == 1 else f"Limits {listed}, by language."


def _samples(
    folder: Path, not_kept: Sequence[Drawn], sources: Mapping[str, str | Path]
) -> dict[str, dict[str, Any]]:
    """The details of each drawn page, by record id. Failed ones are not parsed again: they may crash the parser."""
    rows = [row for d in not_kept for row in d.rows]
    parsed = [row for row in rows if row["outcome"] != ledger.FAILED]
    read = read_texts(parsed, sources, 2 * EXCERPT)
    texts = {row["record_id"]: found for row, found in zip(parsed, read, strict=True)}
    originals = _originals(folder, rows)
    return {row["record_id"]: _sample(row, *texts.get(row["record_id"], ("", "")), originals) for row in rows}


def _sample(row: Mapping[str, Any], text: str, note: str, originals: Mapping[str, str]) -> dict[str, Any]:
    """One dropped page: address, facts, the page that was kept in its place, and the beginning of its text."""
    by_language = row["stage"] in ("language", "quality", "dedup") and row["detail"]
    detail = row["detail"] or ""
    facts = [
        row["host"],
        f"language {detail}" if by_language else "" if row["url"].startswith(detail) else detail,
    ]
    if row["value"] is not None and row["rule"] not in YES_OR_NO:
        limit = (
            ""
            if row["threshold"] is None or row["rule"] in NO_LIMIT
            else f", limit {number(row['threshold'])}"
        )
        facts.append(f"measured {number(row['value'])}{limit}")
    original = row["duplicate_of"] and originals.get(row["duplicate_of"], row["duplicate_of"])
    return {
        "url": _cut(row["url"], MAX_URL),
        "facts": [fact for fact in facts if fact],
        "original": original and _cut(original, MAX_URL),
        "note": _cut(note, EXCERPT),
        "language": row["detail"] if by_language else "",
        "text": _excerpt(text),
    }


def _kept(folder: Path, drawn: Drawn) -> list[dict[str, Any]]:
    """The details of the kept pages that were drawn."""
    ids = [row["record_id"] for row in drawn.rows]
    found = {d["record_id"]: d for d in find_rows(folder, "record_id", ids, "documents")} if ids else {}
    return [
        {
            "url": _cut(d["url"], MAX_URL),
            "facts": [
                d["host"],
                f"language {d['language']} ({d['language_score']:.2f})",
                f"{d['n_bytes']:,} bytes",
            ],
            "original": "",
            "note": "",
            "language": d["language"],
            "text": _excerpt(d["text"]),
        }
        for d in (found[record_id] for record_id in ids if record_id in found)
    ]


def _excerpt(text: str) -> str:
    """The beginning of a text, without personal data and without control characters."""
    from unicodedata import category

    from corpus.pii import replace_pii

    clean = "".join(c for c in text[: 2 * EXCERPT] if c == "\n" or category(c)[0] != "C")
    return _cut(replace_pii(clean), EXCERPT)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most].rstrip() + " …"


def _originals(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """URL of each kept page that one of the rows is a copy of, as far as it is in this corpus."""
    wanted = {row["duplicate_of"] for row in rows if row["duplicate_of"]}
    found = find_rows(folder, "record_id", wanted) if wanted else []
    return {row["record_id"]: row["url"] for row in found}
