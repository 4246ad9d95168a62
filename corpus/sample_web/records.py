"""The records of the sample web, made one by one: texts on the pages of its sites, with the planted trouble.

Notable: every record has a random generator of its own, seeded with (seed, number of records before it).
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from corpus.sample_web.pages import (
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
from corpus.sample_web.personal import plant_personal
from corpus.sample_web.plan import teaches
from corpus.sample_web.texts import Article, Texts, sentences
from corpus.sample_web.trouble import (
    BROKEN_VARIANTS,
    SPAM_VARIANTS,
    break_markup,
    near_copy,
    spam_article,
)

# The kinds after the almanac, in the order of making: copies and revisits need what they repeat to exist.
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


@dataclass(slots=True)
class SampleRecord:
    """One record of the sample and the truth about it. `expected_outcome` is kept, dropped or failed."""

    kind: str
    url: str
    block: bytes
    article: Article | None
    expected_outcome: str
    variant: str = ""
    duplicate_of: "SampleRecord | None" = None
    pii: list[dict[str, str]] = field(default_factory=list)  # kind and text of each
    decoys: list[str] = field(default_factory=list)
    warc_type: str = "response"
    record_id: str = ""


def make_records(texts: Texts, counts: dict[str, int], seed: int) -> list[SampleRecord]:
    """As many records of each kind as `counts` says, in the order in which they are written."""
    return _RecordMaker(texts, counts, seed).make_all()


class _RecordMaker:
    """Chooses texts and hosts and makes the records, each with a random generator of its own."""

    def __init__(self, texts: Texts, counts: dict[str, int], seed: int):
        self.counts, self.seed = counts, seed
        self.sites = {language: make_sites(language) for language in texts.articles}
        self.texts = {language: self._shuffled(articles) for language, articles in texts.articles.items()}
        taught = [a for a in self.texts["en"] if teaches(a)]
        self.taught = taught[: counts["almanac"]]
        names = {a.title for a in self.taught}
        self.english: Iterator[Article] = iter([a for a in self.texts["en"] if a.title not in names])
        self.records: list[SampleRecord] = []
        self.copied: set[str] = set()  # URLs of originals

    def _shuffled(self, articles: list[Article]) -> list[Article]:
        return sorted(articles, key=lambda a: hashlib.sha256(f"{self.seed}:{a.title}".encode()).digest())

    def random(self) -> Random:
        """The generator of the next record."""
        return Random(f"{self.seed}:{len(self.records)}")

    def make_all(self) -> list[SampleRecord]:
        """All records, in the order in which they are written: mixed, the truncated one last."""
        for article in self.taught:
            self.add("almanac", article, ALMANAC, "kept")
        makers: dict[str, Callable[[int], None]] = {kind: getattr(self, f"_{kind}") for kind in ORDER}
        for kind, make in makers.items():
            for number in range(self.counts.get(kind, 0) + self._missing(kind)):
                make(number)
        records = self.records
        Random(f"{self.seed}:order").shuffle(records)
        records.sort(key=lambda r: r.kind == "truncated")
        for r in records:
            r.record_id = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'stemma-sample:{self.seed}:{r.url}')}"
        return records

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
        variant: str = "",
        duplicate_of: SampleRecord | None = None,
        pii: list[dict[str, str]] | None = None,
        decoys: list[str] | None = None,
    ) -> None:
        """Render an article on a site (`change`: how its HTML is damaged) and record the response and its truth."""
        random, number = self.random(), len(self.records)
        others = self.texts[site.language]
        related = tuple(random.choice(others).title for _ in range(random.randrange(4, 9)))
        body = change(render(site, Page(article.title, article.paragraphs, related)))
        block = response(body, status, content_type(site), site.transfer)
        url = page_url(site, article.title, number)
        self.records.append(
            SampleRecord(kind, url, block, article, expected, variant, duplicate_of, pii or [], decoys or [])
        )

    def _site(self, language: str = "en", number: int | None = None) -> Site:
        sites = self.sites[language]
        return self.random().choice(sites) if number is None else sites[number % len(sites)]

    def _article(self, number: int) -> None:
        article, pii, decoys = plant_personal(next(self.english), number, self.random())
        self.add("article", article, self._site(number=number), "kept", pii=pii, decoys=decoys)

    def _original(self, at_least: int = 0) -> SampleRecord:
        """A plain article of `at_least` words, if there is one, without planted data and not copied yet."""
        plain = [
            r
            for r in self.records
            if r.kind == "article" and not (r.pii or r.decoys) and r.url not in self.copied
        ]
        fitting = [r for r in plain if r.article and r.article.n_words >= at_least] or plain
        chosen = self.random().choice(fitting)
        self.copied.add(chosen.url)
        return chosen

    def _mirror(self, number: int) -> None:
        last = self.records[-1]
        again = last.kind == "mirror" and number % 5 == 4  # so that some texts are in three places
        original = (last.duplicate_of if again else None) or self._original()
        assert original.article is not None
        hosts = {original.url.split("/")[2], last.url.split("/")[2]}
        site = self.random().choice([s for s in self.sites["en"] if s.host not in hosts])
        self.add("mirror", original.article, site, "dropped", variant="exact", duplicate_of=original)

    def _near_duplicate(self, number: int) -> None:
        original = self._original(at_least=100)
        assert original.article is not None
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
        target = self.records[number].url
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
        url = f"https://{self._site().host}/files/{len(self.records)}.{media.split('/')[1]}"
        block = response(body, content_type=media)
        self.records.append(SampleRecord("not_html", url, block, None, "dropped", variant=media))

    def _revisit(self, number: int) -> None:
        seen = self.records[number]
        block = seen.block.split(b"\r\n\r\n")[0] + b"\r\n\r\n"
        url = f"{seen.url}?visit={number + 2}"
        self.records.append(SampleRecord("revisit", url, block, None, "dropped", warc_type="revisit"))

    def _truncated(self, number: int) -> None:
        self.add("truncated", next(self.english), self.sites["en"][0], "failed", variant="cut")
