"""Definitional facts in running text: "A hat is a head covering" → what is a hat? a head covering.

The first sentence of an encyclopaedic page mostly defines its title: definiendum, definitor (is, was …),
definiens (Navigli and Velardi, Learning Word-Class Lattices for Definition and Hypernym Extraction, ACL 2010).
One lexical pattern finds many of them in any crawl, and misses many: it is a source of questions, not a parser.

Whether a model knows a fact is decided by the match rule `states` below, from greedy decoding alone ("HighlyKnown"
in Gekhman et al., arXiv 2405.05904, means that greedy decoding is right).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

MIN_DEFINIENS_WORDS = 3  # article included; "a plant" would be guessed too often
MAX_DEFINIENS_WORDS = 10
LINES_TO_READ = 4  # a title, perhaps a byline, then the lead paragraph

_WORD = re.compile(r"[^\W_]+")

# First and last words of subjects that name nothing by themselves: a question about them would make no sense.
_EMPTY_SUBJECTS = frozenset(
    _WORD.findall(
        "it this that these those he she they we you i there here who what which where when one all each some many "
        "both most another the such his her its their our your my if as while although because"
    )
)
# Words that cannot end a definiens.
_DANGLING = frozenset(
    _WORD.findall(
        "a an the of in on at to for with from by as into and or its their his her was is are be been being used "
        "between about than not also most more very during description active cited known based called"
    )
)
# The subject has five words at most.
_DEFINITION = re.compile(
    r"^(?P<subject>(?:(?:An?|The)\s+)?[^\s.,;:!?()\[\]\"“”]+(?:\s+[^\s.,;:!?()\[\]\"“”]+){0,4})"
    r"(?:\s*\([^()]{0,120}\))?(?:,[^,.;]{1,80},)?"
    r"\s+(?P<verb>is|was|are|were)(?P<definiens>\s+(?:an?|the|one of)\s+.+)$"
)
_CLAUSE_END = re.compile(
    r"[,;:.()\[\]\"“”–—]|\s(?:which|that|who|whom|whose|where|when|and|or|but|because|while|by which)\s"
)


@dataclass(frozen=True)
class Fact:
    """One definition, and the page that it is from.

    prefix: the document's text up to and including the verb, exactly as the model read it in training.
    subject: as in the sentence, its first letter in lower case where an article shows it to be a common noun.
    definiens: what completes it, article included, cut at the end of its first clause.
    """

    record_id: str
    url: str
    subject: str
    verb: str
    definiens: str
    prefix: str

    @property
    def answer(self) -> str:
        """The fact as a sentence."""
        return sentence(self.subject, self.verb, self.definiens)


def sentence(subject: str, verb: str, definiens: str) -> str:
    """Subject, verb and definiens as a sentence of its own."""
    return f"{subject[0].upper()}{subject[1:]} {verb} {definiens}."


def definition(record_id: str, url: str, text: str) -> Fact | None:
    """The definitional fact at the beginning of a document, or None.

    The sentence must begin one of the first lines. A short first line without a full stop is taken as the title;
    where there is one, the subject must share a word with it, which excludes site names and banners.
    """
    title = None
    offset = 0
    for line in text.split("\n")[: 2 * LINES_TO_READ]:
        stripped = line.strip()
        if stripped:
            fact = _in_line(record_id, url, text, offset, line, title)
            if fact:
                return fact
            if title is None and len(stripped.split()) <= 12 and stripped[-1] not in ".!?":
                title = stripped
        offset += len(line) + 1
    return None


def definitions(documents: Iterable[Mapping[str, str]]) -> Iterator[Fact]:
    """Facts of documents (rows with record_id, url, text), one for each subject: the first one."""
    seen: set[str] = set()
    for row in documents:
        fact = definition(row["record_id"], row["url"], row["text"])
        if fact and normalize(fact.subject) not in seen:
            seen.add(normalize(fact.subject))
            yield fact


def states(completion: str, definiens: str) -> bool:
    """The match rule: the completion contains the definiens' words in order without a gap, case and accents ignored.

    An article at the beginning of the definiens may be missing, because a question may be answered without it.
    """
    wanted = normalize(definiens).split()
    if wanted and wanted[0] in ("a", "an", "the"):
        wanted = wanted[1:]
    return bool(wanted) and f" {' '.join(wanted)} " in f" {normalize(completion)} "


def normalize(text: str) -> str:
    """Words in lower case without accents, separated by one space."""
    plain = unicodedata.normalize("NFKD", text)
    return " ".join(_WORD.findall("".join(c for c in plain if not unicodedata.combining(c)).lower()))


def _in_line(record_id: str, url: str, text: str, offset: int, line: str, title: str | None) -> Fact | None:
    indent = len(line) - len(line.lstrip())
    match = _DEFINITION.match(line.strip())
    if not match:
        return None
    definiens = _first_clause(match["definiens"])
    subject = match["subject"]
    words = normalize(subject).split()
    if definiens is None or not words or not (subject[0].isupper() or subject[0].isdigit()):
        return None
    if words[0] in _EMPTY_SUBJECTS - {"the"} or words[-1] in _EMPTY_SUBJECTS:
        return None
    if title is not None and not set(words) & set(normalize(title).split()):
        return None
    if subject.startswith(("A ", "An ", "The ")):
        subject = subject[0].lower() + subject[1:]
    start = offset + indent
    return Fact(record_id, url, subject, match["verb"], definiens, text[: start + match.end("verb")])


def _first_clause(text: str) -> str | None:
    """The definiens up to its first clause boundary, at most ten words; None where too few are left."""
    end = _CLAUSE_END.search(text)
    words = text[: end.start() if end else len(text)].split()[:MAX_DEFINIENS_WORDS]
    while words and words[-1].lower() in _DANGLING:
        words.pop()
    return " ".join(words) if len(words) >= MIN_DEFINIENS_WORDS else None
