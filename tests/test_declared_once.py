"""Invariant 1: what dvc.yaml declares is what runs, and Dagster shows the same."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOMS = ("corpus", "model", "evals")
ENTRIES = {  # the modules that a stage's body calls, as assets/<stage>.py names them
    "raw_crawl": ["corpus.crawl"],
    "cleaned_corpus": ["corpus.clean"],
    "training_set": ["evals.training_set"],
    "tokenizer": ["model.vocabulary.train"],
    "base_model": ["model.pretrain"],
    "sft_model": ["evals.probes", "model.sft"],
    "rl_model": ["model.rl"],
    "eval_reports": ["evals.report"],
}
DECIDE_NOTHING = {  # how work is spread, shown or logged: no byte of an output depends on them
    "corpus/__init__.py",
    "corpus/engines/__init__.py",
    "corpus/engines/choose.py",
    "corpus/engines/engine.py",
    "corpus/engines/pool.py",
    "corpus/engines/ray_engine.py",
    "corpus/engines/slurm.py",
    "corpus/engines/slurm_element.py",
    "corpus/engines/wire.py",
    "corpus/report/charts.py",
    "corpus/report/html_page.py",
    "corpus/report/plots.py",
    "corpus/report/samples.py",
    "corpus/report/summary.py",
    "corpus/rules/meaning.py",
    "corpus/unit_key.py",
    "evals/__init__.py",
    "model/__init__.py",
    "model/run_log.py",
    "model/system_metrics.py",
    "model/training/gpus.py",
    "model/training/meter.py",
    "model/training/samples.py",
    "model/training/stop.py",
    "model/training/trial.py",
}


def imported(root: Path, module: str) -> set[str]:
    """Files of the rooms that a module imports anywhere in its body."""
    found = set()
    tree = ast.parse((root / (module.replace(".", "/") + ".py")).read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {
            n for n in names if n.split(".")[0] in ROOMS and (root / (n.replace(".", "/") + ".py")).exists()
        }
    return found


def closure(root: Path, modules: list[str]) -> set[str]:
    """Files that running these modules may execute and that decide what comes out, found by following imports."""
    seen, queue = set(), list(modules)
    while queue:
        module = queue.pop()
        path = module.replace(".", "/") + ".py"
        if path not in seen | DECIDE_NOTHING:
            seen.add(path)
            queue += imported(root, module)
    return seen


@pytest.mark.parametrize("asset", ENTRIES)
def test_dvc_yaml_names_all_code_that_decides_a_stage(root: Path, asset: str):
    from resources.dvc_ledger import DvcLedger

    declared = next(s for s in DvcLedger(root).chain.stages.values() if s.asset == asset)
    assert closure(root, ENTRIES[asset]) == set(declared.code_deps)


def test_dagster_shows_the_dependencies_and_code_versions_of_dvc_yaml(root: Path):
    import dagster as dg

    import definitions

    ledger = definitions.defs.resources["ledger"]
    graph = definitions.defs.resolve_asset_graph()
    for stage in ledger.chain.stages.values():
        node = graph.get(dg.AssetKey(stage.asset))
        upstream = {ledger.chain.stages[name].asset for name in ledger.chain.upstream(stage.name)}
        assert {key.to_user_string() for key in node.parent_keys} == upstream
        assert node.code_version == ledger.code_version(stage.asset)
