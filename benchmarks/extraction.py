"""Quality and speed of main-text extraction on real pages: ours compared with other extractors.

    pip install -e '.[bench]'                                     # readability-lxml
    python -m benchmarks.extraction ../shared/data/crawl          # every page; --every 8 for every eighth

The folder holds WARC files and gold.jsonl.gz: a page's reference text (F1 of words as a bag, of characters for
Chinese; the mean over pages, and over languages), or segments that must and must not be in its text (precision, recall
and F1 over all segments, as trafilatura's own evaluation counts them; white space aside). All get the same decoded
page. Processor time of this process; each page goes to all extractors in turn, so that other load affects all alike.
"""

import argparse
import gzip
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from corpus.extraction.charset import decode
from corpus.truth import word_f1
from corpus.warc import read_records


def gold_pages(folder: Path, every: int = 1) -> Iterator[tuple[dict, str]]:
    """(gold row, decoded page) of every `every`-th page that is in both the folder's archives and its gold data."""
    with gzip.open(folder / "gold.jsonl.gz", "rt") as file:
        gold = {row["record_id"]: row for row in map(json.loads, file)}
    number = 0
    for path in sorted(folder.glob("*.warc.gz")):
        for record in read_records(path, path.name):
            row = gold.get(record.record_id)
            number += row is not None
            if row and number % every == 0:
                yield row, decode(record.payload, record.http_charset)


def f1(text: str, row: dict) -> float:
    """F1 of words, of characters for Chinese, against a page's reference text."""
    if row["language"] == "zh":
        return word_f1(" ".join(text), " ".join(row["text"]))[2]
    return word_f1(text, row["text"])[2]


def segments(text: str, row: dict) -> tuple[int, int, int]:
    """Of a page's segments: (true positives, false positives, false negatives)."""
    flat = " ".join(text.split())
    found = [" ".join(segment.split()) in flat for segment in row["must"]]
    false = sum(" ".join(segment.split()) in flat for segment in row["must_not"])
    return sum(found), false, len(found) - sum(found)


class Score:
    """The results of one extractor: F1 by language, segments, and processor seconds."""

    def __init__(self) -> None:
        self.seconds, self.pages, self.failed = 0.0, 0, 0
        self.f1: dict[str, list[float]] = defaultdict(list)
        self.segments = [0, 0, 0]

    def add(self, text: str, row: dict) -> None:
        """Score one page's text."""
        if "text" in row:
            self.f1[row["language"]].append(f1(text, row))
        if "must" in row:
            self.segments = [a + b for a, b in zip(self.segments, segments(text, row), strict=True)]

    def numbers(self) -> dict[str, float]:
        """F1 by language and over languages; precision, recall and F1 of segments."""
        out = {language: sum(v) / len(v) for language, v in sorted(self.f1.items())}
        out["languages"] = sum(out.values()) / max(1, len(out))
        right, false, missed = self.segments
        out["precision"], out["recall"] = right / max(1, right + false), right / max(1, right + missed)
        out["F1"] = 2 * right / max(1, 2 * right + false + missed)
        return out


def extractors() -> dict[str, Callable[[str], str]]:
    """Name: page -> text."""
    import logging

    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    from corpus.extraction.blocks import Page
    from corpus.extraction.extract import main_text
    from corpus.extraction.faithful import faithful_text

    logging.disable(logging.CRITICAL)
    fineweb = {"favor_precision": True, "include_comments": False}
    found = {
        "trafilatura": lambda page: trafilatura.extract(page) or "",
        "trafilatura, FineWeb's": lambda page: trafilatura.extract(page, **fineweb, deduplicate=True) or "",
        "resiliparse": lambda page: extract_plain_text(
            page, main_content=True, alt_texts=False, comments=False, post_meta=False
        ),
        "ours, fast": lambda page: main_text(Page(page)).text,
        "ours, faithful": faithful_text,
    }
    try:
        from lxml.html import fromstring
        from readability import Document
    except ImportError:
        print("readability-lxml is not installed: pip install -e '.[bench]'", file=sys.stderr)
        return found

    def readability(page: str) -> str:
        summary = Document(page).summary(html_partial=True)
        return "\n".join(fromstring(summary).itertext()) if summary.strip() else ""

    return {"readability-lxml": readability} | found


def main() -> None:
    """Run every extractor over the pages and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    tools = extractors()
    scores = {name: Score() for name in tools}
    for row, page in gold_pages(options.folder, options.every):
        for name, extract in tools.items():
            score, before = scores[name], time.process_time()
            try:
                text = extract(page)
            except Exception:  # an extractor that fails on a page has no text for it
                text, score.failed = "", score.failed + 1
            score.seconds += time.process_time() - before
            score.pages += 1
            score.add(text, row)
    columns = list(next(iter(scores.values())).numbers())
    print(f"{'':24}{'pages/CPU-s':>12}{'failed':>8}" + "".join(f"{column:>11}" for column in columns))
    for name, score in scores.items():
        numbers = "".join(f"{value:11.4f}" for value in score.numbers().values())
        print(f"{name:24}{score.pages / score.seconds:12.1f}{score.failed:8}{numbers}")


if __name__ == "__main__":
    main()
