"""The benchmarks run on demand, so it is here that they learn of a module that has moved."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IN_ANOTHER_ENVIRONMENT = {"corpus_datatrove", "rules_datatrove"}  # datatrove's
NAMES = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - IN_ANOTHER_ENVIRONMENT)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_finds_what_it_measures(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    assert callable(importlib.import_module(f"benchmarks.{name}").main)
