"""`stemma sync` with a real Dagster instance: after a roll-back the UI shows what is on disk."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from tiny_project import DVC, make, sh

from lineage.sync import RESTORED, sync
from resources.dagster_log import latest_record, version_of
from resources.dvc_ledger import DvcLedger
from resources.workspace import Workspace


def assets_of(root: Path) -> list[dg.AssetsDefinition]:
    """The small project as Dagster assets, as assets/stage.py builds the real one."""
    ledger = DvcLedger(root)
    crawls = dg.StaticPartitionsDefinition(list(Workspace(root).params()["crawls"]))

    def build(asset: str) -> dg.AssetsDefinition:
        stages = [s for s in ledger.chain.stages.values() if s.asset == asset]
        upstream = sorted(
            {ledger.chain.stage(u).asset for s in stages for u in ledger.chain.upstream(s.name)}
        )

        @dg.asset(
            name=asset,
            deps=upstream,
            code_version=ledger.code_version(asset),
            partitions_def=crawls if stages[0].partition else None,
        )
        def compute(context):
            name = f"{asset}@{context.partition_key}" if context.has_partition_key else asset
            version = ledger.recorded(name) if ledger.changes(name) == [] else make(root, name)
            return dg.MaterializeResult(
                data_version=dg.DataVersion(version), metadata={"numbers": version[:4]}
            )

        return compute

    return [build(a) for a in ("raw_crawl", "cleaned_corpus", "tokenizer", "base_model")]


def run_all(root: Path, instance: dg.DagsterInstance) -> None:
    assets = assets_of(root)
    for crawl in Workspace(root).params()["crawls"]:
        corpus = [a for a in assets if a.key.to_user_string() in ("raw_crawl", "cleaned_corpus")]
        assert dg.materialize(corpus, instance=instance, partition_key=crawl).success
    models = dg.AssetSelection.assets("tokenizer", "base_model")
    assert dg.materialize(assets, instance=instance, selection=models).success


def shown(root: Path, instance: dg.DagsterInstance) -> dict[str, tuple[str | None, str, list[str]]]:
    """What the UI shows of each stage: version, staleness, and its reasons."""
    graph = dg.Definitions(assets=assets_of(root)).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    found = {}
    for stage in DvcLedger(root).chain.stages.values():
        key = dg.AssetKey(stage.asset)
        reasons = [cause.reason for cause in resolver.get_stale_causes(key, stage.partition)]
        status = resolver.get_status(key, stage.partition).value
        found[stage.name] = (version_of(latest_record(instance, stage)), status, reasons)
    return found


def current(root: Path) -> dict[str, tuple[str | None, str, list[str]]]:
    ledger = DvcLedger(root)
    return {name: (ledger.recorded(name), "FRESH", []) for name in ledger.chain.stages}


@pytest.fixture
def instance():
    with dg.DagsterInstance.local_temp() as instance:
        yield instance


@pytest.fixture
def two_versions(chain, instance):
    """Two crawls, all built, committed; then the first crawl changed, all built and committed again."""
    Workspace(chain).set_crawl("second", {"source": "sample", "pages": 5})
    run_all(chain, instance)
    sh(chain, "git", "add", "-A")
    sh(chain, "git", "commit", "-qm", "old")
    Workspace(chain).set_crawl("sample", {"source": "sample", "pages": 8})
    run_all(chain, instance)
    sh(chain, "git", "commit", "-qam", "new")
    return chain


def test_after_a_roll_back_dagster_shows_the_old_versions_and_nothing_stale(two_versions, instance):
    root = two_versions
    new = current(root)
    assert shown(root, instance) == new
    assert sync(root, instance) == [], "what agrees is not reported"

    sh(root, "git", "checkout", "-q", "HEAD~1")
    sh(root, DVC, "checkout")
    old = current(root)
    assert shown(root, instance) == new != old, "Dagster trusts its log, not the disk"

    lines = sync(root, instance)
    moved = ["raw_crawl@sample", "cleaned_corpus@sample", "tokenizer", "base_model"]
    assert [line.split(":")[0] for line in lines] == moved
    assert (
        lines[0]
        == f"raw_crawl@sample: {old['raw_crawl@sample'][0]} (Dagster showed {new['raw_crawl@sample'][0]})"
    )
    assert shown(root, instance) == old
    assert sync(root, instance) == []

    event = instance.get_latest_materialization_event(dg.AssetKey("tokenizer")).asset_materialization
    assert event.metadata["restored"].value == RESTORED
    assert event.metadata["numbers"].value == old["tokenizer"][0][:4], "its numbers come back with it"

    sh(root, "git", "checkout", "-q", "-")
    sh(root, DVC, "checkout")
    assert len(sync(root, instance)) == 4
    assert shown(root, instance) == new

    run_all(root, instance)
    assert shown(root, instance) == new, "runs after a sync go on as if nothing had been"


def test_a_stale_lock_stays_stale_in_dagster(chain, instance):
    """What was built from other inputs or code is reported as such."""
    run_all(chain, instance)
    Workspace(chain).set_crawl("sample", {"source": "sample", "pages": 9})
    make(chain, "raw_crawl@sample")
    make(chain, "cleaned_corpus@sample")
    with open(chain / "code/train.py", "a") as file:
        file.write("# other\n")
    lines = sync(chain, instance)
    assert [line.split(":")[0] for line in lines] == ["raw_crawl@sample", "cleaned_corpus@sample"]
    found = shown(chain, instance)
    assert found["cleaned_corpus@sample"][1:] == ("FRESH", [])
    for name in ("tokenizer", "base_model"):
        assert found[name][1] == "STALE"
        assert set(found[name][2]) == {"has a new code version", "has a new dependency data version"}
    with dg.DagsterInstance.local_temp() as blank:
        assert len(sync(chain, blank)) == 4, "a new instance learns everything from dvc.lock"
        assert shown(chain, blank) == found
        assert sync(chain, blank) == []


def test_a_folder_that_is_not_the_locks_version_is_not_reported(chain, instance):
    make(chain, "raw_crawl@sample")
    (chain / "data/raw_crawl/sample/more.txt").write_text("from elsewhere")
    (line,) = sync(chain, instance)
    assert line.startswith("raw_crawl@sample: not reported") and line.endswith("Run 'dvc checkout'.")
    assert shown(chain, instance)["raw_crawl@sample"][:2] == (None, "MISSING")
