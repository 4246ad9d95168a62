"""Which lines of a page are its main text: some sixty features of each line, its neighbours and its boxes, scored by
small boosted trees.

The trees are oblivious (one split a level, the same for all lines: Prokhorenkova et al. 2018, arXiv 1706.09516) and
were fitted by tools/fit_extraction.py, which documents the data and measures them on sites that they have not seen.
Leaf values are whole numbers and the features are counts and ratios of counts, so that a page gives the same text on
every machine.
"""

import re
from functools import cache
from typing import Any

import numpy as np

from corpus.extraction.blocks import BIT, HEADINGS, HINTS, PERIPHERAL, Box, Line, Page
from corpus.words import CJK

CJK_CHARACTER = re.compile(f"[{CJK}]")
NOT_LETTERS = re.compile(r"[\W\d_]+")
DIGIT = re.compile(r"\d")
BRACKET = re.compile(r"[|»›→•·©/@]")
# Words of boilerplate ("furniture" is the feature's name) that are common across languages or in one of them.
_FURNITURE = """
copyright rights reserved cookie cookies javascript newsletter facebook twitter whatsapp instagram youtube linkedin
pinterest telegram email mail rss login logout subscribe subscription share tweet like abonnieren abonnez pdf http https
www comment comments kommentar kommentare komentarz komentarze comentarios commentaires weiterlesen foto photo image
tags posted privacy advertisement anzeige werbung reklama publicidad click download print drucken источник фото
комментарии комментариев реклама читайте подробнее версия ссылка σχόλια 评论 来源 编辑 责任编辑 版权 转载 分享
"""
FURNITURE = frozenset(_FURNITURE.split())
ENDS = tuple(".!?…。！？\"”»’'):;」")
KINDS = {kind: number for number, kinds in enumerate((
    ("div", "section", "body", "article"), ("p",), ("li", "dd", "dt"), ("td", "th"), ("tr",), ("pre",),
    ("blockquote",), tuple(sorted(HEADINGS)), ("figcaption", "caption"),
)) for kind in kinds}  # fmt: skip
PROSE = 20  # half words; a shorter line is not prose
LINKED = 0.8  # a line with a larger share inside links is never text
NEAR = 20  # lines; distances are clipped here
AT_ONCE = 2048  # lines; bounds the memory that a page of many lines takes
HOME = 0.55  # of a page's prose; the innermost box with a larger share is the text's container ("home")
MUCH = 0.25  # of a page's prose; peripheral hints of a box with a larger share are ignored if it is marked as content
CENTRAL = BIT["content"] | BIT["article"] | BIT["main"]

LINE_FEATURES = (
    "chars", "linked", "links", "kind", "heading", "ends", "commas", "digits", "brackets", "capital",
    "furniture", "in_title", "repeats",
)  # fmt: skip
PLACE_FEATURES = (
    "depth_in_home", "prose_1", "prose_2", "prose_3", "linked_0", "linked_1", "linked_2",
    "lines_1", "chars_a_line_1", "like_prose", "like_words", "like_linked",
)  # fmt: skip
NEIGHBOUR_FEATURES = (
    "prose", "prose_above", "prose_near", "prose_around", "after_first", "before_last", "after_h1",
    "linked_before", "linked_after", "words_before", "words_after", "kind_before", "kind_after", "page_linked",
    "page_prose", "page_proses",
)  # fmt: skip
FEATURES = (*LINE_FEATURES, *PLACE_FEATURES, *NEIGHBOUR_FEATURES, *HINTS)
_HINT_BITS = np.array([BIT[name] for name in HINTS], dtype=np.int64)[:, None]


Trees = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # as prepare() gives them
Kind = tuple[str, str | None, str | None]  # of a box: its tag, its class, its parent's class


def half_words(text: str) -> int:
    """Twice the words of a line; a Chinese or Japanese character is half a word."""
    spaced = 2 * text.count(" ") + 2
    return spaced if text.isascii() else spaced + len(CJK_CHARACTER.findall(text))


def scores(page: Page, trees: Trees | None = None) -> tuple[list[int], np.ndarray]:
    """The indices of the lines that may be text, and the score of each, in thousandths of log odds: (lines,) int64."""
    candidates, table = features(page)
    return candidates, judge(table, trees or _fitted())


def judge(table: np.ndarray, trees: Trees) -> np.ndarray:
    """The sums of the trees' leaf values, (lines,) int64, from the features, (FEATURES, lines)."""
    split_on, thresholds, leaves, offsets = trees
    depth, total = len(split_on) // len(offsets), []
    for start in range(0, table.shape[1], AT_ONCE):
        part = table[:, start : start + AT_ONCE]
        above = (part[split_on] > thresholds).reshape(len(offsets), depth, -1)
        leaf = offsets + above[:, 0]
        for level in range(1, depth):
            leaf += above[:, level].astype(np.int64) << level
        total.append(leaves[leaf].sum(axis=0))
    return np.concatenate(total) if total else np.zeros(0, np.int64)


@cache
def _fitted() -> Trees:
    from corpus.extraction.prose_trees import MODEL

    return prepare(MODEL)


def prepare(model: dict[str, Any]) -> Trees:
    """The arrays that judge() needs, from a model as prose_trees.py holds it.

    Feature of each split, tree by tree and level by level: (trees * depth,) int64; thresholds: (trees * depth, 1)
    float32; all leaf values: (trees * leaves,) int64; where each tree's leaves begin: (trees, 1) int64. Raises
    RuntimeError for a model of other features.
    """
    if model["features"] != list(FEATURES):
        raise RuntimeError(
            "corpus/extraction/prose_trees.py was fitted for other features. "
            "Run python -m tools.fit_extraction FOLDER --write."
        )
    split_on = np.array([[FEATURES.index(name) for name, _ in tree["splits"]] for tree in model["trees"]])
    thresholds = np.array([[at for _, at in tree["splits"]] for tree in model["trees"]])
    leaves = np.array([tree["leaves"] for tree in model["trees"]])
    leaves[0] += model["bias"]
    offsets = np.arange(len(leaves))[:, None] * leaves.shape[1]
    return split_on.ravel(), thresholds.astype(np.float32).reshape(-1, 1), leaves.ravel(), offsets


def features(page: Page) -> tuple[list[int], np.ndarray]:
    """The indices of the lines that may be text, and their features, (FEATURES, lines) float32."""
    lines = page.lines
    words, by_kind = _measure(page)
    candidates = [
        i
        for i, x in enumerate(lines)
        if x.linked <= LINKED * len(x.text) and x.kind not in ("button", "label")
    ]
    if not candidates:
        return [], np.zeros((len(FEATURES), 0), np.float32)
    title = page.title.lower()
    occurrences: dict[str, int] = {}
    places: dict[Box, tuple[float, ...]] = {}
    for line in lines:
        occurrences[line.text] = occurrences.get(line.text, 0) + 1
    total = max(1, page.boxes[0].prose)
    rows, hints = [], []
    for i in candidates:
        line = lines[i]
        box = line.box
        place = places.get(box)
        if place is None:
            place = places[box] = _place(box, by_kind, total)
        rows.append(_of_line(line, words[i], title, occurrences[line.text]) + place)
        hints.append(box.hints)
    own = np.array(rows, dtype=np.float32).T
    flags = (np.array(hints, dtype=np.int64) & _HINT_BITS) != 0
    return candidates, np.concatenate(
        [own, _neighbours(lines, words)[:, candidates], flags], dtype=np.float32
    )


def _measure(page: Page) -> tuple[list[int], dict[Kind, list[int]]]:
    """Fill in the boxes' counts and pass hints down. Returns each line's half words, and counts by kind of box.

    The counts of a kind: [lines, half words, characters, linked characters, half words of prose].
    """
    words: list[int] = []
    by_kind: dict[Kind, list[int]] = {}
    for line in page.lines:
        box, n, size, linked = line.box, half_words(line.text), len(line.text), line.linked
        words.append(n)
        prose = n if n >= PROSE and linked * 2 < size else 0
        box.lines += 1
        box.chars += size
        box.linked += linked
        box.prose += prose
        kind = (box.tag, box.name, box.parent.name if box.parent else None)
        counts = by_kind.get(kind)
        if counts is None:
            counts = by_kind[kind] = [0, 0, 0, 0, 0]
        counts[0] += 1
        counts[1] += n
        counts[2] += size
        counts[3] += linked
        counts[4] += prose
    for box in reversed(page.boxes):
        parent = box.parent
        if parent is not None and box.lines:
            parent.lines += box.lines
            parent.chars += box.chars
            parent.linked += box.linked
            parent.prose += box.prose
    total = page.boxes[0].prose if page.boxes else 0
    most, much = HOME * total, MUCH * total
    for box in page.boxes:
        if not box.lines:
            continue
        parent = box.parent
        if parent is not None:
            hints = box.hints
            if box.prose > most:  # such boxes are nested: the last is the innermost
                hints &= ~PERIPHERAL
                box.home = 0
            else:
                if box.prose > much and hints & CENTRAL and not hints & BIT["comment"]:
                    hints &= ~PERIPHERAL
                if parent.home is not None:
                    box.home = parent.home + 1
            box.hints = hints | parent.hints
        else:
            box.home = 0
    return words, by_kind


def _of_line(line: Line, words: int, title: str, repeats: int) -> tuple[float, ...]:
    """LINE_FEATURES of a line."""
    text = line.text
    size = len(text)
    lower = text[:200].lower()
    return (
        size,
        line.linked / size,
        line.links,
        KINDS.get(line.kind, 0),
        int(line.kind[1]) if line.kind in HEADINGS else 0,
        text.endswith(ENDS),
        (text.count(",") + text.count("，") + text.count("、")) / words,
        len(DIGIT.findall(text[:100])) / min(size, 100),
        len(BRACKET.findall(text[:100])),
        text[0].isupper(),
        words < 60 and not FURNITURE.isdisjoint(NOT_LETTERS.split(lower)),
        10 < size < 200 and lower in title,
        repeats,
    )


def _place(box: Box, by_kind: dict[Kind, list[int]], total: int) -> tuple[float, ...]:
    """PLACE_FEATURES of the lines of a box; `total`: the half words of prose of the page."""
    one = box.parent or box
    two = one.parent or one
    three = two.parent or two
    lines, words, chars, linked, prose = by_kind[box.tag, box.name, box.parent.name if box.parent else None]
    return (
        -1 if box.home is None else box.home,
        one.prose / total,
        two.prose / total,
        three.prose / total,
        box.linked / box.chars,
        one.linked / one.chars,
        two.linked / two.chars,
        one.lines,
        one.chars / one.lines,
        prose / total,
        words / lines,
        linked / chars,
    )


def _neighbours(lines: list[Line], half: list[int]) -> np.ndarray:
    """NEIGHBOUR_FEATURES of all lines, (features, lines)."""
    n = len(lines)
    words = np.array(half, dtype=np.int64)
    size = np.array([len(line.text) for line in lines], dtype=np.int64)
    links = np.array([line.linked for line in lines], dtype=np.int64)
    kinds = np.array([-1, -1, *[KINDS.get(line.kind, 0) for line in lines], -1], dtype=np.int64)[1:]
    linked = links / size
    prose = np.where((words >= PROSE) & (links * 2 < size), words, 0)
    above = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(prose, out=above[1:])
    total = max(1, int(above[-1]))
    at = np.arange(n)
    full = np.flatnonzero(prose)
    first, last = (full[0], full[-1]) if len(full) else (n, -1)
    h1 = next((i for i, line in enumerate(lines) if line.kind == "h1"), n)
    near = above[np.minimum(at + 4, n)] - above[np.maximum(at - 3, 0)] - prose
    around = above[np.minimum(at + 9, n)] - above[np.maximum(at - 8, 0)] - prose
    linked_by = np.concatenate(([-1.0], linked, [-1.0]))
    words_by = np.concatenate(([-1], words, [-1]))
    ones = np.ones(n)
    return np.stack([
        prose / total, above[:-1] / total, near, around,
        np.clip(at - first, -NEAR, NEAR), np.clip(last - at, -NEAR, NEAR), np.clip(at - h1, -NEAR, NEAR),
        linked_by[:-2], linked_by[2:], words_by[:-2], words_by[2:], kinds[:-2], kinds[2:],
        ones * (int(links.sum()) / int(size.sum())), ones * total, ones * len(full),
    ])  # fmt: skip
