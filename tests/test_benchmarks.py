"""Benchmarks and tools run on demand, so it is here that they learn of a module that has moved."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IN_ANOTHER_ENVIRONMENT = {"corpus_datatrove", "rules_datatrove"}  # datatrove's
NAMES = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - IN_ANOTHER_ENVIRONMENT)
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_finds_what_it_measures(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_the_corpus_benchmark_finds_the_steps_that_it_times(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.corpus import STEPS

    assert all(callable(getattr(module, name)) for _, module, name in STEPS)


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_finds_what_it_writes(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    assert callable(importlib.import_module(f"tools.{name}").main)


def test_the_generated_modules_are_as_their_tools_write_them(monkeypatch):
    """The values themselves come from data that is not here; how they are written is the same either way."""
    monkeypatch.syspath_prepend(ROOT)
    from corpus.extraction.prose_trees import MODEL
    from corpus.rules.languages import COLUMNS, STOP_WORDS, THRESHOLDS
    from tools import fit_extraction, rule_languages

    rows = {language: dict(zip(COLUMNS, row, strict=True)) for language, row in THRESHOLDS.items()}
    ours = {language: len(own) for language, own in rule_languages.OURS.items()}
    assert rule_languages.source_of(STOP_WORDS, rows, ours) == rule_languages.MODULE.read_text()
    assert fit_extraction.source_of(MODEL) == (ROOT / "corpus/extraction/prose_trees.py").read_text()
