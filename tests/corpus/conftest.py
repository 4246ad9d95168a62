"""A small web of known truth, for the tests of the corpus package."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """Three archives of 240 pages made of Python's own manual, with planted trouble."""
    from corpus.sample_web.build import build_sample
    from corpus.sample_web.texts import manual_texts

    folder = tmp_path_factory.mktemp("sample")
    build_sample(folder, pages=240, texts=manual_texts(), files=3)
    return folder
