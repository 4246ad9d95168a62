"""The rules: their tables for docs/rules.md, what they drop of texts that are known to be good, and what they cost.

    python -m benchmarks.rules tables --write docs/rules.md   the tables, from the code (a test compares)
    python -m benchmarks.rules gold GOLD.jsonl.gz             pass rates by language of reference main texts
    python -m benchmarks.rules speed WARC…                    processor time by page and language
    python -m benchmarks.rules texts WARC… --to TEXTS.jsonl    main texts, for rules_datatrove.py
    python -m benchmarks.rules parity TEXTS.jsonl PEER.jsonl   where datatrove decides otherwise
    python -m benchmarks.rules size CORPUS                    bytes that recorded values take

GOLD has one JSON object a line with `language` and `text`: main texts as people marked them on real pages, so good
text by definition; a rule that drops many of them is wrong for the language (or finds what the markers overlooked).
"""

import argparse
import gzip
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from corpus.rules.languages import STOP_WORDS, THRESHOLDS
from corpus.rules.quality import RULES, Limits, Rule, Verdict, judge, limits_for
from corpus.rules.thresholds import FLAVOURS, SETTINGS, Setting
from corpus.words import Words

BEGIN, END = "<!-- made by benchmarks/rules.py: begin -->", "<!-- made by benchmarks/rules.py: end -->"


def tables() -> str:
    """All rules, settings and languages, as Markdown."""
    return "\n\n".join((_rules(), _settings(), _languages(), _stop_words()))


def _limit(value: float | None) -> str:
    return "off" if value is None else f"{value:,g}"


def _papers(row: Rule | Setting) -> str:
    return "" if isinstance(row.papers, str) else _limit(row.papers)


def _rules() -> str:
    lines = ["| rule | drops pages | `fineweb` | `papers` | measures | source | note |", "|" + "---|" * 7]
    for rule in RULES:
        measured = (rule.measure.__doc__ or "").strip().split("\n")[0].rstrip(".")
        side = "above" if rule.side == "max" else "below"
        cells = (f"`{rule.name}`", side, _limit(rule.limit), _papers(rule), measured, rule.source, rule.note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _settings() -> str:
    lines = ["| setting | `fineweb` | `papers` | what it does | source | note |", "|" + "---|" * 6]
    for row in SETTINGS:
        cells = (f"`{row.name}`", _limit(row.limit), _papers(row), row.what, row.source, row.note)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _languages() -> str:
    """One column a language; rules that stand alike everywhere are left out."""
    codes = ("en", *THRESHOLDS, "other")
    limits = {code: limits_for(code).thresholds for code in codes}
    lines = ["| rule | " + " | ".join(codes) + " |", "|" + "---|" * (len(codes) + 1)]
    for row in (*RULES, *SETTINGS):
        values = [_limit(limits[code][row.name]) for code in codes]
        if len(set(values)) > 1:
            lines.append(f"| `{row.name}` | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _stop_words() -> str:
    lines = ["| language | stop words |", "|---|---|"]
    return "\n".join(lines + [f"| {code} | {words} |" for code, words in STOP_WORDS.items()])


def with_tables(page: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def gold(path: Path) -> None:
    """Pass rates of reference texts by the language's limits, by the English ones, and as the papers say.

    English limits are asked without stop words, and in Chinese without word lengths, or nothing would pass.
    """
    texts: dict[str, list[str]] = defaultdict(list)
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        if row.get("text") and row.get("language"):
            texts[row["language"]].append("\n".join(part.strip() for part in row["text"].split("\n")))
    print(
        "| language | texts | English limits | `fineweb` | `papers` | what drops, `fineweb` |\n|" + "---|" * 6
    )
    unasked = ("gopher_stop_words", "gopher_min_word_length", "gopher_max_word_length")
    for language, known in sorted(texts.items()):
        off = tuple((name, None) for name in (unasked if language == "zh" else unasked[: language != "en"]))
        by_english = _fates(known, limits_for("en", thresholds=off))
        by_flavour = [_fates(known, limits_for(language, flavour)) for flavour in FLAVOURS]
        rates = [f"{100 * counts[''] / len(known):.1f} %" for counts in (by_english, *by_flavour)]
        drops = ", ".join(f"{rule} {n}" for rule, n in by_flavour[0].most_common() if rule)
        print(f"| {language} | {len(known)} | " + " | ".join(rates) + f" | {drops} |")


def _fates(texts: list[str], limits: Limits) -> Counter:
    """The rules that drop texts, '' for those that pass."""
    verdicts = (judge(Words.of(text), limits) for text in texts)
    return Counter(verdict.rule if isinstance(verdict, Verdict) else "" for verdict in verdicts)


def speed(files: list[Path], passes: int = 3) -> None:
    """Processor time of tokenisation, rules and shingles on the main texts of an archive's pages."""
    pages = defaultdict(list)
    for title, text, language in _pages(files):
        pages[language].append((title, text))
    print("| language | pages | characters | tokenise | rules | shingles | all, ms a page |\n|" + "---|" * 7)
    for language, known in sorted(pages.items(), key=lambda item: -len(item[1])):
        if len(known) < 20:
            continue
        best = min((_time(known, language) for _ in range(passes)), key=sum)
        size = sum(len(text) for _, text in known) / len(known)
        spent = [1000 * seconds / len(known) for seconds in best]
        cells = (f"{part:.2f}" for part in (*spent, sum(spent)))
        print(f"| {language} | {len(known)} | {size:,.0f} | " + " | ".join(cells) + " |")


def _time(pages: list[tuple[bool, str]], language: str) -> tuple[float, float, float]:
    limits, clock, spent = limits_for(language), time.process_time, [0.0, 0.0, 0.0]
    for title, text in pages:
        start = clock()
        words = Words.of(text, title)
        tokenised = clock()
        found = judge(words, limits)
        judged = clock()
        if isinstance(found, Words):
            found.shingles(5)
        for number, seconds in enumerate((tokenised - start, judged - tokenised, clock() - judged)):
            spent[number] += seconds
    return tuple(spent)


def _pages(files: list[Path]) -> Iterator[tuple[bool, str, str]]:
    from corpus.extraction.extract import extract_page
    from corpus.language import identify
    from corpus.warc import Record, read_records

    for file in files:
        for record in read_records(str(file), file.name, Counter()):
            if isinstance(record, Record) and record.kind == "html" and record.status == 200:
                page = extract_page(record.payload, record.http_charset)
                if page.text:
                    yield page.title is not None, page.text, identify(page.text)[0]


def texts(files: list[Path], to: Path) -> None:
    """Write the main texts of archives, one JSON object a line."""
    with to.open("w") as out:
        for _, text, language in _pages(files):
            print(json.dumps({"language": language, "text": text}), file=out)


def parity(texts: Path, peer: Path) -> None:
    """Compare verdicts, whatever the rule; titles are lines like others here, as datatrove knows none."""
    counts, blamed = defaultdict(Counter), defaultdict(Counter)
    for line, theirs in zip(texts.read_text().splitlines(), map(json.loads, peer.open()), strict=True):
        row = json.loads(line)
        if theirs is None:
            continue
        verdict = judge(Words.of(row["text"]), limits_for(row["language"]))
        ours = verdict.rule if isinstance(verdict, Verdict) else ""
        counts[row["language"]][bool(ours), bool(theirs)] += 1
        if bool(ours) != bool(theirs):
            blamed[row["language"]][ours or theirs] += 1
    print(
        "| language | texts | both keep | both drop | only we drop | only datatrove drops | by |\n|"
        + "---|" * 7
    )
    for language, fates in sorted(counts.items()):
        cells = [fates[key] for key in ((False, False), (True, True), (True, False), (False, True))]
        by = ", ".join(f"{rule} {n}" for rule, n in blamed[language].most_common())
        print(f"| {language} | {sum(cells)} | " + " | ".join(map(str, cells)) + f" | {by} |")


def size(folder: Path) -> None:
    """What the values of a corpus take on disk."""
    import pyarrow.parquet as pq

    parts = sorted((folder / "values").glob("*.parquet"))
    rows, taken = sum(pq.read_metadata(p).num_rows for p in parts), sum(p.stat().st_size for p in parts)
    beside = sum(p.stat().st_size for p in (folder / "ledger").glob("*.parquet"))
    print(
        f"{rows:,} pages, {taken:,} bytes of values: {taken / max(1, rows):.0f} a page; ledger: {beside:,} bytes"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    doors = parser.add_subparsers(dest="door", required=True)
    doors.add_parser("tables").add_argument("--write", type=Path)
    doors.add_parser("gold").add_argument("path", type=Path)
    doors.add_parser("speed").add_argument("files", type=Path, nargs="+")
    door = doors.add_parser("texts")
    door.add_argument("files", type=Path, nargs="+")
    door.add_argument("--to", type=Path, required=True)
    door = doors.add_parser("parity")
    door.add_argument("texts", type=Path)
    door.add_argument("peer", type=Path)
    doors.add_parser("size").add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.door == "gold":
        gold(options.path)
    elif options.door == "speed":
        speed(options.files)
    elif options.door == "texts":
        texts(options.files, options.to)
    elif options.door == "parity":
        parity(options.texts, options.peer)
    elif options.door == "size":
        size(options.folder)
    elif options.write:
        options.write.write_text(with_tables(options.write.read_text()))
    else:
        print(tables())


if __name__ == "__main__":
    main()
