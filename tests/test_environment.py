"""The environment: what must be installed together, and works only in these versions."""

import subprocess
import sys
from pathlib import Path

import dagster as dg


def test_dagster_parses_string_selections_beside_dvc():
    # DVC pulls antlr 4.9 through hydra-core; with it every string selection dies with "ord() expected string".
    import dvc.repo  # noqa: F401

    @dg.asset
    def page(): ...

    @dg.asset(deps=[page])
    def model(): ...

    selection = dg.AssetSelection.from_string("+key:model")
    graph = dg.Definitions(assets=[page, model]).resolve_asset_graph()
    assert {key.to_user_string() for key in selection.resolve(graph)} == {"page", "model"}


def test_dvc_resolves_templates_beside_dagster(tmp_path: Path):
    (tmp_path / "params.yaml").write_text("crawls: {a: {n: 1}}\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  fetch:\n    foreach: ${crawls}\n"
        "    do:\n      cmd: echo ${item.n}\n      outs:\n      - data/${key}\n"
    )
    from dvc.repo import Repo

    repo = Repo.init(str(tmp_path), no_scm=True)
    assert [stage.name for stage in repo.index.stages] == ["fetch@a"]


def test_the_installed_packages_fit_together():
    said = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout


def test_the_definitions_load_without_heavy_imports(root: Path):
    heavy = "{'torch', 'mlflow', 'transformers', 'matplotlib'}"
    code = f"import sys, definitions; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "[]"
