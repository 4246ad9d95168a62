"""Fit the trees of corpus/extraction/prose.py, and say how well they do on sites that they have not seen.

    pip install -e '.[bench]'
    python -m benchmarks.fit_extraction ../shared/data/crawl                 # cross-validated by site
    python -m benchmarks.fit_extraction ../shared/data/crawl --write         # fit on all pages, write the table

A line of a page with a reference text is text where half of its word triples stand in the reference. On pages that
have only segments, a line with one is what the segment says, weighted high; other lines follow what two of trafilatura
(its own setting, FineWeb's) and readability say, weighted low. Sites fall into two halves by a hash of their domain.
Gradient boosting of oblivious trees; leaves in thousandths of log odds.
"""

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.extraction import Score, extractors, gold_pages
from corpus.extraction import prose
from corpus.extraction.blocks import Page
from corpus.extraction.extract import main_text
from corpus.words import tokenize

TREES, DEPTH, RATE = 120, 5, 0.2
# Ridge on leaves; share of lines a tree sees; bins a feature; of the shares.
L2, SHARE, BINS, SEED = (
    8.0,
    0.5,
    48,
    0,
)

HEAD = '''"""The trees of prose.py, written by benchmarks/fit_extraction.py: features, thresholds, answers."""

# fmt: off
# ruff: noqa: E501
MODEL = '''


@dataclass
class Sample:
    """A page's gold row and HTML, its candidate lines' features (lines, features), labels and weights, and half."""

    row: dict
    html: str
    table: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    half: int


def site(url: str) -> str:
    """The registered domain, nearly; archived pages by the site that was archived."""
    archived = re.match(r"https?://web\.archive\.org/web/[^/]*/(.*)", url)
    url = archived.group(1) if archived else url
    if "::" in url:
        host = url.split("::", 1)[1].split("-")[0]
    else:
        host = urlsplit(url if "//" in url else f"http://{url}").hostname or url
    parts = host.split(".")
    second = len(parts) > 2 and parts[-2] in ("co", "com", "org", "net", "gov", "edu", "ac")
    return ".".join(parts[-3 if second else -2 :])


def words_of(text: str, signs: bool) -> list[str]:
    """Words in lower case, or signs for Chinese."""
    if signs:
        return [sign for sign in text.lower() if sign.isalnum()]
    return [word for word in tokenize(text.lower()) if word[0].isalnum()]


def by_reference(lines: list[str], row: dict) -> tuple[np.ndarray, np.ndarray]:
    """Labels and weights of the lines of a page whose main text is known."""
    signs = row["language"] == "zh"
    size = 4 if signs else 3
    gold = words_of(row["text"], signs)
    flat, grams = f" {' '.join(gold)} ", {tuple(gold[i : i + size]) for i in range(len(gold) - size + 1)}
    labels, weights = np.zeros(len(lines)), np.full(len(lines), 0.2)
    for number, line in enumerate(lines):
        words = words_of(line, signs)
        if not words:
            continue
        if len(words) <= size + 1:
            labels[number] = len(words) > 1 and f" {' '.join(words)} " in flat
        else:
            own = [tuple(words[i : i + size]) in grams for i in range(len(words) - size + 1)]
            labels[number] = 2 * sum(own) >= len(own)
        weights[number] = min(len(words), 80) ** 0.7 + 0.5
    return labels, weights * 10 / np.sqrt(weights.sum())


def by_segments(lines: list[str], row: dict, others: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and weights of the lines of a page of which segments are known."""
    labels, weights = np.zeros(len(lines)), np.zeros(len(lines))
    others = [" ".join(text.split()) for text in others]
    for number, line in enumerate(lines):
        flat = " ".join(line.split())
        wanted = any(" ".join(segment.split()) in flat for segment in row["must"])
        unwanted = any(" ".join(segment.split()) in flat for segment in row["must_not"])
        if wanted != unwanted:
            labels[number], weights[number] = wanted, 12
        elif not wanted:
            votes = sum(flat in text for text in others)
            labels[number] = votes >= 2
            weights[number] = (0.3 if votes in (1, 2) else 1.0) * min(len(line.split()), 40) ** 0.5
    return labels, weights


def samples(folder: Path) -> list[Sample]:
    """Every page with its lines' features and labels."""
    tools = extractors()
    voters = [tools[name] for name in ("trafilatura", "ours, faithful", "readability-lxml") if name in tools]
    out = []
    for row, html in gold_pages(folder):
        page = Page(html)
        maybe, table = prose.features(page)
        lines = [page.lines[at].text for at in maybe]
        if "text" in row:
            labels, weights = by_reference(lines, row)
        else:
            labels, weights = by_segments(lines, row, [tool(html) for tool in voters])
        half = int(hashlib.sha256(site(row["url"]).encode()).hexdigest(), 16) % 2
        out.append(Sample(row, html, table.T, labels, weights, half))
    return out


def boost(table: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict:
    """The model as prose_trees.json holds it, from (lines, features), (lines,), (lines,)."""
    draw = np.random.default_rng(SEED)
    edges = [_edges(column) for column in table.T]
    bins = np.stack(
        [np.searchsorted(e, c, "left").astype(np.uint8) for e, c in zip(edges, table.T, strict=True)]
    )
    mean = np.average(labels, weights=weights)
    bias = round(1000 * float(np.log(mean / (1 - mean))))
    score, trees = np.full(len(labels), bias / 1000), []
    for _ in range(TREES):
        chance = 1 / (1 + np.exp(-score))
        slope, bend = weights * (labels - chance), weights * chance * (1 - chance)
        seen = np.flatnonzero(draw.random(len(labels)) < SHARE)
        asks = _grow(bins[:, seen], slope[seen], bend[seen], edges)
        leaf = np.zeros(len(labels), np.int64)
        for level, (feature, cut) in enumerate(asks):
            leaf += (bins[feature] > cut).astype(np.int64) << level
        rises, bends = np.bincount(leaf, slope, 1 << DEPTH), np.bincount(leaf, bend, 1 << DEPTH)
        answers = np.round(1000 * RATE * rises / (bends + L2)).astype(int)
        score += answers[leaf] / 1000
        named = [[prose.FEATURES[feature], float(edges[feature][cut])] for feature, cut in asks]
        trees.append({"asks": named, "answers": answers.tolist()})
    return {"bias": bias, "features": list(prose.FEATURES), "trees": trees}


def _edges(column: np.ndarray) -> np.ndarray:
    values = np.unique(column)
    if len(values) > BINS:
        values = np.append(np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1])), values[-1])
    return values[:-1].astype(np.float32)


def _grow(bins: np.ndarray, slope: np.ndarray, bend: np.ndarray, edges: list) -> list[tuple[int, int]]:
    """The questions of one tree, each the one that gains most over all leaves so far: [(feature, edge)]."""
    leaf, asks, width = np.zeros(bins.shape[1], np.int64), [], BINS + 1
    for level in range(DEPTH):
        best, leaves = (-1.0, 0, 0), 1 << level
        for feature, own in enumerate(edges):
            if not len(own):
                continue
            place = leaf * width + bins[feature]
            up = np.bincount(place, slope, leaves * width).reshape(leaves, width)
            down = np.bincount(place, bend, leaves * width).reshape(leaves, width)
            left, weight = up.cumsum(1)[:, : len(own)], down.cumsum(1)[:, : len(own)]
            right, rest = up.sum(1)[:, None] - left, down.sum(1)[:, None] - weight
            gain = (left**2 / (weight + L2) + right**2 / (rest + L2)).sum(0)
            best = max(best, (float(gain.max()), feature, int(gain.argmax())))
        asks.append(best[1:])
        leaf += (bins[best[1]] > best[2]).astype(np.int64) << level
    return asks


def fit(chosen: list[Sample]) -> dict:
    """A model of the pages."""
    parts = [[getattr(sample, name) for sample in chosen] for name in ("table", "labels", "weights")]
    return boost(*(np.concatenate(part) for part in parts))


def write(model: dict, path: Path) -> None:
    """One tree a line; numbers and names of features only."""
    trees = ",\n".join(json.dumps(tree, separators=(",", ":")) for tree in model["trees"])
    head = json.dumps({"bias": model["bias"], "features": model["features"]})
    path.write_text(f'{HEAD}{head[:-1]},\n"trees": [\n{trees}\n]}}\n')


def report(name: str, model: dict, pages: list[Sample]) -> Score:
    """How a model does on pages, by the whole chain of extraction; printed."""
    trees, score = prose.prepare(model), Score()
    for page in pages:
        score.add(main_text(Page(page.html), trees).text, page.row)
    print(f"{name:44}", *(f"{k} {v:.4f}" for k, v in score.numbers().items()), flush=True)
    return score


def main() -> None:
    """Cross-validate; or fit on all and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    pages = samples(options.folder)
    if options.write:
        write(fit(pages), Path(prose.__file__).with_name("prose_trees.py"))
        return
    for half in (0, 1):
        seen, unseen = ([p for p in pages if (p.half == half) == same] for same in (True, False))
        report(f"fitted on half {half}, judged on half {1 - half}", fit(seen), unseen)
    for source in sorted({page.row["source"] for page in pages}):
        seen = [p for p in pages if p.row["source"] == source and p.half == 0]
        unseen = [p for p in pages if p.row["source"] != source and p.half == 1]
        report(f"fitted on {source} only, judged on the other", fit(seen), unseen)


if __name__ == "__main__":
    main()
