"""Fit the trees of corpus/extraction/prose.py, and measure how well they do on sites that they have not seen.

    pip install -e '.[bench]'
    python -m tools.fit_extraction ../shared/data/crawl             # cross-validated by site, nothing is written
    python -m tools.fit_extraction ../shared/data/crawl --write     # fit on all pages, write prose_trees.py

The folder holds WARC files and gold.jsonl.gz, as for benchmarks/extraction.py. A line of a page with a reference text
is labelled text where half of its word trigrams occur in the reference. On pages that have only segments, a line with
a segment gets the segment's label and a high weight; other lines follow what two of trafilatura (its default setting,
FineWeb's) and readability say, with a low weight. Sites are split into two folds by a hash of their domain. Gradient
boosting of oblivious trees; leaf values in thousandths of log odds.
"""

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from benchmarks.extraction import Score, extractors, gold_pages
from core.files import write_atomically
from corpus.extraction import prose
from corpus.extraction.blocks import Page
from corpus.extraction.extract import main_text
from corpus.words import tokenize

TREES, DEPTH = 120, 5
RATE = 0.2  # learning rate
L2 = 8.0  # ridge penalty on leaf values
SUBSAMPLE, SEED = 0.5, 0  # share of the lines that each tree is fitted on, and the seed of its draw
BINS = 48  # of a feature's values

HEAD = '''"""The trees of prose.py: features, splits, leaf values.

Written by `python -m tools.fit_extraction FOLDER --write`; do not edit.
"""

# fmt: off
# ruff: noqa: E501
MODEL = '''


Floats = npt.NDArray[Any]


@dataclass
class Sample:
    """A page with labels for its candidate lines."""

    row: dict[str, Any]  # of gold.jsonl.gz
    html: str
    table: Floats  # features: (lines, features) float32
    labels: Floats  # 1 where a line is text: (lines,)
    weights: Floats  # (lines,)
    fold: int  # 0 or 1, by site


def site(url: str) -> str:
    """The registered domain, approximately; of an archived page, that of the original."""
    archived = re.match(r"https?://web\.archive\.org/web/[^/]*/(.*)", url)
    url = archived.group(1) if archived else url
    if "::" in url:
        host = url.split("::", 1)[1].split("-")[0]
    else:
        host = urlsplit(url if "//" in url else f"http://{url}").hostname or url
    parts = host.split(".")
    second = len(parts) > 2 and parts[-2] in ("co", "com", "org", "net", "gov", "edu", "ac")
    return ".".join(parts[-3 if second else -2 :])


def words_of(text: str, by_character: bool) -> list[str]:
    """Words in lower case, or characters for Chinese."""
    if by_character:
        return [character for character in text.lower() if character.isalnum()]
    return [word for word in tokenize(text.lower()) if word[0].isalnum()]


def by_reference(lines: list[str], row: dict[str, Any]) -> tuple[Floats, Floats]:
    """Labels and weights of the lines of a page that has a reference text."""
    by_character = row["language"] == "zh"
    size = 4 if by_character else 3
    gold = words_of(row["text"], by_character)
    flat, grams = f" {' '.join(gold)} ", {tuple(gold[i : i + size]) for i in range(len(gold) - size + 1)}
    labels, weights = np.zeros(len(lines)), np.full(len(lines), 0.2)
    for number, line in enumerate(lines):
        words = words_of(line, by_character)
        if not words:
            continue
        if len(words) <= size + 1:
            labels[number] = len(words) > 1 and f" {' '.join(words)} " in flat
        else:
            own = [tuple(words[i : i + size]) in grams for i in range(len(words) - size + 1)]
            labels[number] = 2 * sum(own) >= len(own)
        weights[number] = min(len(words), 80) ** 0.7 + 0.5
    return labels, weights * 10 / np.sqrt(weights.sum())


def by_segments(lines: list[str], row: dict[str, Any], others: list[str]) -> tuple[Floats, Floats]:
    """Labels and weights of the lines of a page that has segments; `others`: its text by other extractors."""
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
    """Every page with its lines' features and labels. Raises OSError where the folder holds no such data."""
    tools = extractors()
    voters = [tools[name] for name in ("trafilatura", "ours, faithful", "readability-lxml") if name in tools]
    out = []
    for row, html in gold_pages(folder):
        page = Page(html)
        candidates, table = prose.features(page)
        lines = [page.lines[at].text for at in candidates]
        if "text" in row:
            labels, weights = by_reference(lines, row)
        else:
            labels, weights = by_segments(lines, row, [tool(html) for tool in voters])
        fold = int(hashlib.sha256(site(row["url"]).encode()).hexdigest(), 16) % 2
        out.append(Sample(row, html, table.T, labels, weights, fold))
    return out


def boost(table: Floats, labels: Floats, weights: Floats) -> dict[str, Any]:
    """The model as prose_trees.py holds it, from (lines, features), (lines,), (lines,)."""
    rng = np.random.default_rng(SEED)
    edges = [_edges(column) for column in table.T]
    bins = np.stack(
        [np.searchsorted(e, c, "left").astype(np.uint8) for e, c in zip(edges, table.T, strict=True)]
    )
    mean = np.average(labels, weights=weights)
    bias = round(1000 * float(np.log(mean / (1 - mean))))
    score, trees = np.full(len(labels), bias / 1000), []
    for _ in range(TREES):
        probability = 1 / (1 + np.exp(-score))
        gradient, hessian = weights * (labels - probability), weights * probability * (1 - probability)
        drawn = np.flatnonzero(rng.random(len(labels)) < SUBSAMPLE)
        splits = _grow(bins[:, drawn], gradient[drawn], hessian[drawn], edges)
        leaf = np.zeros(len(labels), np.int64)
        for level, (feature, cut) in enumerate(splits):
            leaf += (bins[feature] > cut).astype(np.int64) << level
        gradients, hessians = np.bincount(leaf, gradient, 1 << DEPTH), np.bincount(leaf, hessian, 1 << DEPTH)
        leaves = np.round(1000 * RATE * gradients / (hessians + L2)).astype(int)
        score += leaves[leaf] / 1000
        named = [[prose.FEATURES[feature], float(edges[feature][cut])] for feature, cut in splits]
        trees.append({"splits": named, "leaves": leaves.tolist()})
    return {"bias": bias, "features": list(prose.FEATURES), "trees": trees}


def _edges(column: Floats) -> Floats:
    """The thresholds that are tried for a feature: (at most BINS,) float32, ascending."""
    values = np.unique(column)
    if len(values) > BINS:
        values = np.append(np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1])), values[-1])
    return values[:-1].astype(np.float32)


def _grow(bins: Floats, gradient: Floats, hessian: Floats, edges: list[Floats]) -> list[tuple[int, int]]:
    """The splits of one tree, each the one that gains most over all leaves so far: [(feature, edge)]."""
    leaf, splits, width = np.zeros(bins.shape[1], np.int64), [], BINS + 1
    for level in range(DEPTH):
        best, leaves = (-1.0, 0, 0), 1 << level
        for feature, own in enumerate(edges):
            if not len(own):
                continue
            place = leaf * width + bins[feature]
            gradients = np.bincount(place, gradient, leaves * width).reshape(leaves, width)
            hessians = np.bincount(place, hessian, leaves * width).reshape(leaves, width)
            left, left_hessian = gradients.cumsum(1)[:, : len(own)], hessians.cumsum(1)[:, : len(own)]
            right = gradients.sum(1)[:, None] - left
            right_hessian = hessians.sum(1)[:, None] - left_hessian
            gain = (left**2 / (left_hessian + L2) + right**2 / (right_hessian + L2)).sum(0)
            best = max(best, (float(gain.max()), feature, int(gain.argmax())))
        splits.append(best[1:])
        leaf += (bins[best[1]] > best[2]).astype(np.int64) << level
    return splits


def fit(chosen: list[Sample]) -> dict[str, Any]:
    """A model fitted on the pages."""
    parts = [[getattr(sample, name) for sample in chosen] for name in ("table", "labels", "weights")]
    return boost(*(np.concatenate(part) for part in parts))


def source_of(model: dict[str, Any]) -> str:
    """The text of prose_trees.py: one tree a line; numbers and names of features only."""
    trees = ",\n".join(json.dumps(tree, separators=(",", ":")) for tree in model["trees"])
    head = json.dumps({"bias": model["bias"], "features": model["features"]})
    return f'{HEAD}{head[:-1]},\n"trees": [\n{trees}\n]}}\n'


def evaluate(name: str, model: dict[str, Any], pages: list[Sample]) -> Score:
    """How a model does on pages, by the whole extraction; printed under `name`."""
    trees, score = prose.prepare(model), Score()
    for page in pages:
        score.add(main_text(Page(page.html), trees).text, page.row)
    print(f"{name:44}", *(f"{k} {v:.4f}" for k, v in score.numbers().items()), flush=True)
    return score


def main() -> None:
    """Cross-validate; with --write, fit on all pages and write prose_trees.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with WARC files and gold.jsonl.gz")
    parser.add_argument("--write", action="store_true", help="fit on all pages and write prose_trees.py")
    options = parser.parse_args()
    pages = samples(options.folder)
    if options.write:
        write_atomically(Path(prose.__file__).with_name("prose_trees.py"), source_of(fit(pages)))
        return
    for fold in (0, 1):
        seen, unseen = ([p for p in pages if (p.fold == fold) == same] for same in (True, False))
        evaluate(f"fitted on fold {fold}, evaluated on fold {1 - fold}", fit(seen), unseen)
    for source in sorted({page.row["source"] for page in pages}):
        seen = [p for p in pages if p.row["source"] == source and p.fold == 0]
        unseen = [p for p in pages if p.row["source"] != source and p.fold == 1]
        evaluate(f"fitted on {source} only, evaluated on the other", fit(seen), unseen)


if __name__ == "__main__":
    main()
