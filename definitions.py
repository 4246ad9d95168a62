"""Dagster's code location: gathers the packages and does nothing else."""

import warnings
from pathlib import Path

import dagster as dg

from assets import STAGES
from assets.dagster_asset import as_asset
from jobs.partitions import crawl_partitions
from jobs.retrain import refresh_corpus, retrain, weekly_retrain
from resources.dvc_ledger import DvcLedger
from resources.engine import ExecutionEngine
from resources.launch import TrainingLauncher
from resources.tracker_resource import MlflowTrackerResource

warnings.filterwarnings("ignore", category=dg.BetaWarning)  # code references are beta; the UI shows them well

ROOT = Path(__file__).resolve().parent


def define(root: Path = ROOT) -> dg.Definitions:
    """Build everything from the dvc.yaml and params.yaml of a project folder."""
    ledger = DvcLedger(root)
    crawls = crawl_partitions(ledger.workspace.section("crawls"))
    job = retrain()
    return dg.Definitions(
        assets=[as_asset(stage, ledger, crawls) for stage in STAGES],
        jobs=[refresh_corpus(crawls), job],
        schedules=[weekly_retrain(job)],
        resources={
            "ledger": ledger,
            "tracker": MlflowTrackerResource(root=str(root)),
            "launcher": TrainingLauncher(root=str(root)),
            "engine": ExecutionEngine.from_environment(),
        },
        executor=dg.multiprocess_executor.configured(
            {"start_method": {"forkserver": {"preload_modules": ["definitions"]}}, "max_concurrent": 2}
        ),
    )


defs = define()
