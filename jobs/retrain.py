"""When the chain runs by itself: a job for the corpus, a job for everything built from it, a weekly schedule.

A stage whose inputs, code and parameters have not changed reuses its version, so a week without changes costs seconds.
"""

from __future__ import annotations

import dagster as dg

CORPUS = ("raw_crawl", "cleaned_corpus")
MODELS = ("training_set", "tokenizer", "base_model", "sft_model", "rl_model", "eval_reports")


def refresh_corpus(partitions: dg.PartitionsDefinition) -> dg.UnresolvedAssetJobDefinition:
    """The job that fetches and cleans one crawl."""
    return dg.define_asset_job(
        "refresh_corpus",
        selection=list(CORPUS),
        partitions_def=partitions,
        description="Fetch one crawl and clean it. Choose the crawl as the partition.",
    )


def retrain() -> dg.UnresolvedAssetJobDefinition:
    """The job that rebuilds every model from the present corpus."""
    return dg.define_asset_job(
        "retrain",
        selection=list(MODELS),
        description="Training set, tokenizer, base, SFT and RL model, and their reports, from the present corpus. "
        "Stages whose inputs have not changed reuse their versions.",
    )


def weekly_retrain(job: dg.UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """Retrain every Monday at 03:00 UTC, while Dagster's daemon runs (`stemma up`)."""
    return dg.ScheduleDefinition(
        name="weekly_retrain",
        job=job,
        cron_schedule="0 3 * * 1",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Retrains on the present corpus once a week; costs seconds when nothing has changed.",
    )
