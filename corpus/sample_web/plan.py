"""How many records of each kind the sample web has, and which texts are fit for its almanac."""

import logging
import re

from core.errors import DataError
from corpus.sample_web.pages import BLOCKED_HOSTS
from corpus.sample_web.texts import Article, Texts, sentences
from corpus.sample_web.trouble import BROKEN_VARIANTS, SPAM_VARIANTS

MIN_PAGES = 100  # with fewer, some kinds of trouble would be missing
ALMANAC_PAGES = 60  # facts that a model of 0.8M parameters can hold at 98-100 % recall; 300 are too many
SHARES = {  # of all pages: (share, at least); the rest are plain articles
    "other_language": (0.18, 8),
    "mirror": (0.06, 4),
    "near_duplicate": (0.07, 6),
    "spam": (0.06, len(SPAM_VARIANTS)),
    "navigation": (0.03, 2),
    "blocked": (0.02, len(BLOCKED_HOSTS)),
    "broken": (0.04, len(BROKEN_VARIANTS)),
    "short": (0.02, 2),
    "empty": (0.01, 1),
    "redirect": (0.01, 1),
    "not_found": (0.01, 1),
    "not_html": (0.01, 2),
    "revisit": (0.005, 1),
}
ENGLISH = ("almanac", "article", "blocked", "broken", "truncated")  # kinds that use up an English text each
# Share of tokens with a letter: Gopher's rule (0.8; arXiv 2112.11446, table A1) and a margin.
MIN_LETTERS = 0.82
DEFINES = r" (?:is|was|are|were) (?:a|an|the) [^()]*\."
log = logging.getLogger(__name__)


def plan(pages: int, texts: Texts) -> dict[str, int]:
    """How many records of each kind make `pages`, or as many as the English texts allow.

    Raises DataError where they do not suffice for MIN_PAGES.
    """
    for total in range(pages, MIN_PAGES - 1, -1):
        counts = {kind: max(round(total * share), least) for kind, (share, least) in SHARES.items()}
        if not texts.articles["fr"]:
            del counts["other_language"]
        counts |= {"almanac": min(ALMANAC_PAGES, total // 8), "truncated": 1}
        counts["article"] = total - sum(counts.values())
        if sum(counts[kind] for kind in ENGLISH) <= len(texts.articles["en"]):
            if total < pages:
                log.warning(
                    "The available text makes %d pages of the sample, not %d (%s).",
                    total,
                    pages,
                    texts.source,
                )
            return counts
    raise DataError(
        f"The available text does not suffice for a sample of {MIN_PAGES} pages ({texts.source})."
    )


def teaches(article: Article) -> bool:
    """Whether an article's first sentence briefly defines its title, and the text is ASCII of 60 to 90 words."""
    first = sentences(article.text.replace("\n", " "))[0]
    tokens = re.findall(r"[\w'-]+|[^\w\s]", article.text)
    return (
        article.text.isascii()
        and sum(any(map(str.isalpha, t)) for t in tokens) >= MIN_LETTERS * len(tokens)
        and 60 <= article.n_words <= 90
        and len(article.title.split()) <= 3
        and len(first.split()) <= 16
        and re.fullmatch(re.escape(article.title) + DEFINES, first) is not None
        and re.search(r"\b[A-Z]\.$", first) is None  # cut at an initial: "by J."
    )
