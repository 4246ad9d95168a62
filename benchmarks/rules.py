"""The quality rules: what they drop of texts known to be good, where datatrove decides otherwise, what they cost.

    python -m benchmarks.rules gold GOLD.jsonl.gz             pass rates by language of reference main texts
    python -m benchmarks.rules speed WARC…                    processor time by page and language
    python -m benchmarks.rules texts WARC… --to TEXTS.jsonl    main texts, for rules_datatrove.py
    python -m benchmarks.rules parity TEXTS.jsonl PEER.jsonl   where datatrove decides otherwise
    python -m benchmarks.rules size CORPUS                    bytes that recorded values take

GOLD has one JSON object a line with `language` and `text`: main texts as annotators marked them on real pages, so good
text by definition; a rule that drops many of them is wrong for the language (or finds what the annotators overlooked).
"""

import argparse
import gzip
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from corpus.rules.quality import Limits, Verdict, judge, limits_for
from corpus.rules.thresholds import FLAVOURS
from corpus.words import Words


def gold(path: Path) -> None:
    """Pass rates of reference texts under the language's limits, the English ones, and the papers'.

    English limits are applied without stop words, and in Chinese without word lengths, or nothing would pass.
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
    not_applied = ("gopher_stop_words", "gopher_min_word_length", "gopher_max_word_length")
    for language, known in sorted(texts.items()):
        off = tuple(
            (name, None) for name in (not_applied if language == "zh" else not_applied[: language != "en"])
        )
        by_english = _verdicts(known, limits_for("en", thresholds=off))
        by_flavour = [_verdicts(known, limits_for(language, flavour)) for flavour in FLAVOURS]
        rates = [f"{100 * counts[''] / len(known):.1f} %" for counts in (by_english, *by_flavour)]
        drops = ", ".join(f"{rule} {n}" for rule, n in by_flavour[0].most_common() if rule)
        print(f"| {language} | {len(known)} | " + " | ".join(rates) + f" | {drops} |")


def _verdicts(texts: list[str], limits: Limits) -> Counter:
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
    """Compare verdicts, whatever the rule; titles count as ordinary lines, since datatrove has none."""
    counts, decided_by = defaultdict(Counter), defaultdict(Counter)
    for line, theirs in zip(texts.read_text().splitlines(), map(json.loads, peer.open()), strict=True):
        row = json.loads(line)
        if theirs is None:
            continue
        verdict = judge(Words.of(row["text"]), limits_for(row["language"]))
        ours = verdict.rule if isinstance(verdict, Verdict) else ""
        counts[row["language"]][bool(ours), bool(theirs)] += 1
        if bool(ours) != bool(theirs):
            decided_by[row["language"]][ours or theirs] += 1
    print(
        "| language | texts | both keep | both drop | only we drop | only datatrove drops | by |\n|"
        + "---|" * 7
    )
    for language, verdicts in sorted(counts.items()):
        cells = [verdicts[key] for key in ((False, False), (True, True), (True, False), (False, True))]
        by = ", ".join(f"{rule} {n}" for rule, n in decided_by[language].most_common())
        print(f"| {language} | {sum(cells)} | " + " | ".join(map(str, cells)) + f" | {by} |")


def size(folder: Path) -> None:
    """What the values of a corpus take on disk."""
    import pyarrow.parquet as pq

    parts = sorted((folder / "values").glob("*.parquet"))
    rows, taken = sum(pq.read_metadata(p).num_rows for p in parts), sum(p.stat().st_size for p in parts)
    ledger = sum(p.stat().st_size for p in (folder / "ledger").glob("*.parquet"))
    print(
        f"{rows:,} pages, {taken:,} bytes of values: {taken / max(1, rows):.0f} a page; ledger: {ledger:,} bytes"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("gold").add_argument("path", type=Path)
    commands.add_parser("speed").add_argument("files", type=Path, nargs="+")
    command = commands.add_parser("texts")
    command.add_argument("files", type=Path, nargs="+")
    command.add_argument("--to", type=Path, required=True)
    command = commands.add_parser("parity")
    command.add_argument("texts", type=Path)
    command.add_argument("peer", type=Path)
    commands.add_parser("size").add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "gold":
        gold(options.path)
    elif options.command == "speed":
        speed(options.files)
    elif options.command == "texts":
        texts(options.files, options.to)
    elif options.command == "parity":
        parity(options.texts, options.peer)
    else:
        size(options.folder)


if __name__ == "__main__":
    main()
