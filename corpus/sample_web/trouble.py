"""The trouble planted into the sample web: near-copies, spam, broken markup.

Personal data and their decoys are planted by corpus.sample_web.personal.

Each function takes its own random generator, so that a page's trouble depends on nothing but the seed and the
page's number. What is planted is returned, so that it can be recorded as truth.
"""

import re
from dataclasses import replace
from random import Random

from corpus.sample_web.texts import Article, sentences

SHINGLE = 5  # words, as FineWeb's MinHash (arXiv 2406.17557, section 3.4)
MIN_JACCARD = 0.85  # of a planted near-copy: the threshold of deduplication, 0.8, and a margin for extraction


def shingles(text: str) -> set[tuple[str, ...]]:
    """All runs of 5 lower-case words."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1))}


def jaccard(a: str, b: str) -> float:
    """Jaccard similarity of the word 5-gram shingles of two texts."""
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


CLOSINGS = (
    "This page was last checked by our editors.",
    "Readers may reprint this text freely.",
    "More on this subject will follow soon.",
    "An older version appeared in print.",
)


def near_copy(article: Article, random: Random) -> tuple[Article, str]:
    """The article with a few words changed, a sentence added or one dropped, and which of these it was.

    Its shingle Jaccard with the article is at least MIN_JACCARD and below 1.
    """
    for _ in range(40):
        variant = random.choice(["words_changed", "sentence_added", "sentence_dropped"])
        paragraphs = list(article.paragraphs)
        if variant == "words_changed":
            at = random.randrange(len(paragraphs))
            words = paragraphs[at].split(" ")
            places = [i for i, w in enumerate(words) if w.isalpha() and w.islower() and len(w) > 4]
            for place in random.sample(places, min(len(places), random.choice([1, 1, 2]))):
                words[place] = random.choice(
                    [w for w in ("various", "notable", "earlier", "common") if w != words[place]]
                )
            paragraphs[at] = " ".join(words)
        elif variant == "sentence_added":
            paragraphs.append(random.choice(CLOSINGS))
        else:
            last = sentences(paragraphs[-1])
            paragraphs[-1:] = [" ".join(last[:-1])] if len(last) > 1 else []
        copy = replace(article, paragraphs=tuple(paragraphs))
        if copy.paragraphs and MIN_JACCARD <= jaccard(article.text, copy.text) < 1:
            return copy, variant
    copy = replace(article, paragraphs=(*article.paragraphs, "Last revised recently."))
    return copy, "sentence_added"


def plant_sentence(article: Article, sentence: str, random: Random) -> Article:
    """The article with a sentence at the end of one of its paragraphs."""
    paragraphs = list(article.paragraphs)
    at = random.randrange(len(paragraphs))
    paragraphs[at] = f"{paragraphs[at]} {sentence}"
    return replace(article, paragraphs=tuple(paragraphs))


SPAM_VARIANTS = (
    "keyword_stuffing",
    "repeated_lines",
    "lorem_ipsum",
    "javascript_stub",
    "list_only",
    "code_dump",
)
GOODS = ["watches", "handbags", "sneakers", "sunglasses", "perfume", "laptops", "mattresses", "vitamins"]
LOREM = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
    "eiusmod",
    "tempor",
    "incididunt",
    "ut",
    "labore",
    "et",
    "dolore",
    "magna",
    "aliqua",
    "enim",
    "minim",
    "veniam",
    "quis",
    "nostrud",
    "exercitation",
    "ullamco",
    "laboris",
    "nisi",
    "aliquip",
    "ex",
    "ea",
    "commodo",
    "consequat",
    "duis",
    "aute",
    "irure",
    "in",
    "reprehenderit",
    "voluptate",
    "velit",
    "esse",
    "cillum",
    "fugiat",
    "nulla",
    "pariatur",
]


def spam_article(variant: str, random: Random) -> Article:
    """A page of one of SPAM_VARIANTS."""
    good = random.choice(GOODS)
    if variant == "keyword_stuffing":
        words = [
            w
            for _ in range(40)
            for w in random.sample(["buy", "cheap", good, "online", "discount", "sale"], 4)
        ]
        return Article(f"Cheap {good}", (" ".join(words) + ".",), "en")
    if variant == "repeated_lines":
        line = f"Click here to see all {good} of this week, with free delivery to your door."
        return Article(f"All {good}", (line,) * 14, "en")
    if variant == "lorem_ipsum":
        lines = [" ".join(random.choices(LOREM, k=14)).capitalize() + "." for _ in range(10)]
        return Article(
            "Lorem ipsum", ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", *lines), "la"
        )
    if variant == "javascript_stub":
        return Article("Please wait", ("Please enable JavaScript in your browser to view this site.",), "en")
    if variant == "list_only":
        items = tuple(f"- {random.choice(GOODS)} {random.randrange(100, 999)} EUR" for _ in range(40))
        return Article("Price list", items, "en")
    lines = [
        f"function f{i}(x) {{ var y = x[{random.randrange(99)}]; return y || {{}}; }}" for i in range(30)
    ]
    return Article("script.js", tuple(lines), "en")


BROKEN_VARIANTS = ("unclosed_tags", "deep_nesting", "stray_bytes", "bare_fragment", "unescaped_signs")


def break_markup(page: bytes, variant: str, random: Random) -> bytes:
    """The page's HTML with damage as it occurs on the web; its main text stays complete."""
    if variant == "unclosed_tags":
        page = re.sub(rb"</(?:[pP]|li|LI|body|BODY|html|HTML|h1|H1|FONT)>", b"", page)
        return b"</div></span></b>".join(page.rsplit(b"</div>", 1))  # and one end tag too many
    if variant == "deep_nesting":
        depth = random.randrange(300, 500)
        return page.replace(b"<h1", b"<div>" * depth + b"<h1", 1).replace(
            b"<H1", b"<div>" * depth + b"<H1", 1
        )
    if variant == "stray_bytes":
        return re.sub(rb"</([pP])>", b"</\\1>\n<!-- \xff\xfe\x00\x81 -->", page) + b"\x00\x00\xc3"
    if variant == "bare_fragment":
        start = re.search(rb"<h1", page, re.IGNORECASE)
        return page[start.start() :] if start else page
    return page.replace(b"<h1", b'<a href="?a=1&b=2&copy=3" title=5 < 6 & 7 > 2></a><h1', 1)
