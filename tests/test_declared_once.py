"""Invariant 1: what dvc.yaml declares is what runs, and Dagster shows the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.code import CodeReader
from core.errors import ConfigError, WorkspaceError
from resources.chain import read_chain
from resources.code_versions import check_code, render_code
from resources.dvc_ledger import DvcLedger
from resources.settings_check import check_settings
from resources.yaml_file import read_yaml

MODELS = ("base_model", "sft_model", "rl_model", "eval_reports")


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


def test_the_committed_generated_files_are_those_of_the_code_here(root: Path):
    done = subprocess.run(
        [sys.executable, "stemma.py", "generate", "--check"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_stage_body_runs_only_modules_that_dvc_yaml_names(root: Path):
    """A module that an asset launches or calls to fill its folder is an entry, so that its code counts."""
    launched = {
        asset: {line.split('launch("')[1].split('"')[0] for line in text.splitlines() if 'launch("' in line}
        for asset in DvcLedger(root).chain.assets
        for text in [(root / "assets" / f"{asset}.py").read_text()]
    }
    for asset, modules in launched.items():
        assert modules <= set(DvcLedger(root).chain.partitions(asset)[0].entries), asset
    assert launched["sft_model"], "the test finds what is launched"


@pytest.fixture(scope="module")
def sources(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code and the declarations, without data."""
    to = tmp_path_factory.mktemp("sources")
    for name in ("core", "corpus", "model", "evals", "resources", "lineage", "assets", "jobs"):
        shutil.copytree(root / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", "code.yaml"):
        shutil.copy(root / name, to)
    return to


def stale_after(sources: Path, path: str, old: str, new: str) -> set[str]:
    """The assets whose code version another text in a file changes."""
    file, ledger = sources / path, DvcLedger(sources)
    text = file.read_text()
    assert text.count(old) >= 1, f"{path} no longer holds {old!r}: choose another edit"

    def versions() -> dict[str, str]:
        reader = CodeReader(sources)
        return {a: reader.closure(ledger.chain.partitions(a)[0].entries).hash() for a in ledger.chain.assets}

    before = versions()
    try:
        file.write_text(text.replace(old, new, 1))
        after = versions()
    finally:
        file.write_text(text)
    return {asset for asset in before if before[asset] != after[asset]}


EVERY = ("raw_crawl", "cleaned_corpus", "training_set", "tokenizer", *MODELS)


@pytest.mark.parametrize(
    ("path", "edit", "stale"),
    [  # one function in each package
        ("core/errors.py", ("class RunError", "class RunError2"), EVERY),
        ("corpus/sources/warc_files.py", ("class WarcFiles", "class WarcFiles2"), ("raw_crawl",)),
        ("corpus/extraction/prose.py", ("return ", "return 0 or "), ("cleaned_corpus",)),
        ("corpus/dedup/similar.py", ("return ", "return 0 or "), ("cleaned_corpus", "training_set")),
        ("model/vocabulary/bpe.py", ("return ", "return 0 or "), ("tokenizer",)),
        (
            "model/generation/decode.py",
            ("return ", "return 0 or "),
            ("sft_model", "rl_model", "eval_reports"),
        ),
        ("model/network/attention.py", ("return ", "return 0 or "), MODELS),
        ("model/data/order.py", ("return ", "return 0 or "), ("base_model", "eval_reports")),
        ("evals/contamination.py", ("return ", "return 0 or "), ("training_set",)),
        ("evals/probes.py", ("return ", "return 0 or "), ("sft_model",)),
        ("evals/statistics.py", ("return ", "return 0 or "), ("eval_reports",)),
        ("corpus/engines/slurm.py", ("return ", "return 0 or "), ()),
        ("corpus/report/html_page.py", ("return ", "return 0 or "), ()),
        ("resources/tracking.py", ("return ", "return 0 or "), ()),
        ("lineage/audit.py", ("return ", "return 0 or "), ()),
        ("assets/plots.py", ("return ", "return 0 or "), ()),
        ("jobs/scaling.py", ("return ", "return 0 or "), ()),
    ],
)
def test_a_changed_line_makes_exactly_those_stages_stale_whose_code_holds_it(sources, path, edit, stale):
    assert stale_after(sources, path, *edit) == set(stale)


def test_a_comment_or_docstring_anywhere_makes_nothing_stale(sources: Path):
    reader, ledger = CodeReader(sources), DvcLedger(sources)
    before = render_code(sources, ledger.chain, {})
    files = {
        p for a in ledger.chain.assets for p in reader.closure(ledger.chain.partitions(a)[0].entries).files
    }
    texts = {path: (sources / path).read_text() for path in files}
    for path, text in texts.items():
        (sources / path).write_text(text.replace('"""', '"""Another beginning. ', 1) + "\n# The end.\n")
    try:
        assert render_code(sources, ledger.chain, {}) == before
        check_code(sources, ledger.chain, ledger.workspace.params())
    finally:
        for path, text in texts.items():
            (sources / path).write_text(text)


def test_training_set_and_tokenizer_depend_on_no_network_and_no_generation(root: Path):
    for asset in ("raw_crawl", "cleaned_corpus", "training_set", "tokenizer"):
        files = DvcLedger(root).closure(DvcLedger(root).chain.partitions(asset)[0]).files
        assert not [
            f for f in files if f.startswith(("model/network/", "model/generation/", "model/training/"))
        ], asset


def test_code_out_of_date_is_refused_with_the_command_that_fixes_it(project):
    path = project.root / "model" / "data" / "order.py"
    path.write_text(path.read_text() + "\nADDED = 1\n")
    for command in (("status",), ("materialize",), ("materialize", "raw_crawl", "--only")):
        done = project.stemma(*command, code=1)
        assert "model/data/order.py" in done.stderr and "stemma generate" in done.stderr, done.stderr
    done = project.run("dvc", "repro", "tokenizer", code=None)
    assert done.returncode != 0 and "stemma generate" in done.stderr
    project.stemma("generate")
    assert "model/data/order.py" in project.run("git", "diff", "code.yaml").stdout
    project.stemma("generate", "--check")
    assert {row["state"] for row in json.loads(project.stemma("status", "--json").stdout)} == {"missing"}


def test_the_setting_for_libraries_puts_their_versions_into_the_code_version(sources: Path):
    ledger = DvcLedger(sources)
    plain = render_code(sources, ledger.chain, {})
    strict = render_code(sources, ledger.chain, {"chain": {"stale_on_library_change": True}})
    assert plain != strict and "torch:" in strict and "torch:" not in plain
    with pytest.raises(WorkspaceError, match=r"another|changed|library"):
        check_code(sources, ledger.chain, {"chain": {"stale_on_library_change": True}})


@pytest.mark.parametrize(
    ("section", "settings", "words"),
    [
        ("rl_model", {"stpes": 3}, r"rl_model: there is no setting called stpes\. Did you mean steps\?"),
        ("base_model", {"depth": "four"}, "base_model: depth is 'four'"),
        ("tokenizer", {"vocab_size": 3}, "vocab_size"),
        ("cleaned_corpus", {"langauges": ["en"]}, r"Did you mean languages\?"),
        ("sft_model", {"epoch": 1}, r"sft_model: there is no setting called epoch"),
        (
            "evalreports",
            {},
            r"params\.yaml: there is no setting called evalreports\. Did you mean eval_reports\?",
        ),
        ("crawls", {"news": {"source": "wark"}}, r"crawls\.news: the source is 'wark'"),
        (
            "sft_model",
            {"mixture": {"worked_sums": 1}},
            r"sft_model\.mixture: there is no setting called worked_sums",
        ),
        ("sft_model", {"worked": 1}, r"sft_model: there is no setting called worked"),
        ("chain", {"stale": True}, "there is no setting called stale"),
    ],
)
def test_a_mistake_in_any_section_is_found_before_anything_runs(root: Path, section, settings, words):
    params = read_yaml(root / "params.yaml")
    params[section] = {**(params.get(section) or {}), **settings}
    chain = read_chain(read_yaml(root / "dvc.yaml"), params)
    with pytest.raises(ConfigError, match=words):
        check_settings(chain, params)


@pytest.mark.parametrize("preset", ["tiny", "demo", "real", "d20", "gpt2-124M", "gpt2-1.6B"])
def test_every_preset_passes_the_check_and_the_schema(root: Path, preset):
    import jsonschema

    from resources.workspace import Workspace

    params = Workspace(root).params_with(preset)
    check_settings(read_chain(read_yaml(root / "dvc.yaml"), params), params)
    jsonschema.validate(params, json.loads((root / "params.schema.json").read_text()))


def test_a_project_without_crawls_has_the_same_code_versions_and_says_what_is_missing(project):
    from resources.workspace import Workspace

    Workspace(project.root).drop_crawl("sample")
    project.stemma("generate", "code.yaml", "--check")
    done = project.stemma("materialize", code=1)
    assert "params.yaml names no crawl" in done.stderr and "--crawl" in done.stderr
    assert not (project.root / "dvc.lock").exists(), "nothing is written before the checks"


def test_a_mistyped_asset_changes_no_file(project):
    before = (project.root / "params.yaml").read_text()
    done = project.stemma("materialize", "tokeniser", "--preset", "gpt2-124M", code=1)
    assert "Did you mean tokenizer?" in done.stderr
    assert (project.root / "params.yaml").read_text() == before and not (project.root / "dvc.lock").exists()


def test_a_missing_section_is_found_before_anything_runs(root: Path):
    params = {name: value for name, value in read_yaml(root / "params.yaml").items() if name != "rl_model"}
    with pytest.raises(ConfigError, match=r"params\.yaml has no section 'rl_model'"):
        check_settings(read_chain(read_yaml(root / "dvc.yaml"), params), params)


@pytest.mark.parametrize("name", ["../tokenizer", "a/b", "a.b", "", "a@b"])
def test_a_crawl_whose_name_is_a_path_is_refused_everywhere(root: Path, name):
    params = read_yaml(root / "params.yaml")
    params["crawls"] = {name: {"source": "sample"}}
    with pytest.raises(WorkspaceError, match="cannot name a crawl"):
        check_settings(read_chain(read_yaml(root / "dvc.yaml"), params), params)
    with pytest.raises(WorkspaceError, match="cannot name a crawl"):
        DvcLedger(root).retire_crawl(name)


def test_a_conflict_in_code_yaml_is_refused_and_generate_resolves_it(project):
    path = project.root / "code.yaml"
    good = path.read_text()
    path.write_text(f"<<<<<<< HEAD\n{good}=======\n{good}>>>>>>> branch\n")
    assert "code.yaml" in project.stemma("status", code=1).stderr
    project.stemma("generate", "code.yaml")
    assert path.read_text() == good


def test_a_run_from_the_ui_checks_all_settings_too(project):
    """As `dagster asset materialize` and the Launchpad do: not through the command line of Stemma."""
    from resources.workspace import Workspace

    Workspace(project.root)._edit_params(lambda params: params["rl_model"].update(learnrate=3))
    (project.root / ".dagster").mkdir()
    command = (
        "dagster",
        "asset",
        "materialize",
        "--select",
        "raw_crawl",
        "--partition",
        "sample",
        "-m",
        "definitions",
    )
    done = project.run("env", f"DAGSTER_HOME={project.root / '.dagster'}", *command, code=None)
    assert done.returncode != 0 and "there is no setting called learnrate" in done.stdout + done.stderr
    assert not (project.root / "data" / "raw_crawl").exists()
