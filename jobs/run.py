"""The chain, run from a terminal: what is out of date is made, through Dagster, and nothing else is touched."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NOT_NUMBERS = {"seconds", "reused"}
POLL_SECONDS = 0.5
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # the stages speak for themselves


class StageFailed(RuntimeError):
    """A stage did not end well; the message says which and why."""


def materialize(
    defs: Any,
    root: Path,
    names: Sequence[str] | None,
    *,
    only: bool = False,
    force: bool = False,
) -> list[dict[str, str]]:
    """Bring stages up to date, and unless `only` what they are made from; return what was made, with versions.

    One Dagster run a crawl for the corpus, then one for everything that is not partitioned.
    Raises StageFailed naming the first stage that failed.
    """
    from resources.dagster_home import close_dead_runs, open_instance

    ledger = defs.resources["ledger"]
    wanted = chosen(ledger, names)
    scope = list(wanted) if only else with_upstream(ledger, wanted)
    made: list[dict[str, str]] = []
    with open_instance(root) as instance:
        close_dead_runs(instance)
        for partition in dict.fromkeys(ledger.chain.stages[name].partition for name in scope):
            group = [name for name in scope if ledger.chain.stages[name].partition == partition]
            due = _due(ledger, instance, group, set(wanted) if force else set())
            if due:
                made += _run(defs, ledger, instance, due, partition, forced=force and set(due) <= set(wanted))
    return made


def chosen(ledger: Any, names: Sequence[str] | None) -> list[str]:
    """Resolve 'tokenizer', 'cleaned_corpus' (all its crawls) and 'cleaned_corpus@sample' to stages, in order."""
    stages = ledger.chain.stages
    if not names:
        return list(stages)
    found: set[str] = set()
    for name in names:
        hits = [s.name for s in stages.values() if name in (s.name, s.asset)]
        if not hits:
            known = ", ".join(dict.fromkeys(s.asset for s in stages.values()))
            raise ValueError(f"there is no asset or partition '{name}'. There are: {known}")
        found |= set(hits)
    return [name for name in stages if name in found]


def with_upstream(ledger: Any, names: Iterable[str]) -> list[str]:
    """Return the stages and all that they are made from, in the order of the chain."""
    scope, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name not in scope:
            scope.add(name)
            queue += ledger.chain.upstream(name)
    return [name for name in ledger.chain.stages if name in scope]


def _due(ledger: Any, instance: Any, group: list[str], forced: set[str]) -> list[str]:
    """Return the stages to run: those out of date or unknown to Dagster, and what follows from them."""
    due: list[str] = []
    for name in group:
        follows = any(up in due for up in ledger.chain.upstream(name))
        if name in forced or follows or ledger.changes(name) or not _known(instance, ledger, name):
            due.append(name)
    return due


def _known(instance: Any, ledger: Any, name: str) -> bool:
    stage = ledger.chain.stages[name]
    return latest_version(instance, stage.asset, stage.partition)[0] == ledger.recorded(name)


def latest_version(instance: Any, asset: str, partition: str | None) -> tuple[str | None, dict[str, Any]]:
    """Return the data version and metadata of Dagster's latest materialisation, or (None, {})."""
    import dagster as dg

    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(asset), asset_partitions=[partition] if partition else None
        ),
        limit=1,
    ).records
    if not records:
        return None, {}
    event = records[0].asset_materialization
    plain = {name: getattr(value, "value", None) for name, value in event.metadata.items()}
    return (event.tags or {}).get("dagster/data_version"), plain


def _run(
    defs: Any, ledger: Any, instance: Any, due: list[str], partition: str | None, *, forced: bool
) -> list[dict[str, str]]:
    import dagster as dg

    from resources.dagster_home import run_tags

    assets = [ledger.chain.stages[name].asset for name in due]
    _wait_for_pools(instance, assets)
    job = defs.resolve_job_def("refresh_corpus" if partition else "retrain")
    config = {"ops": {asset: {"config": {"force": True}} for asset in assets}} if forced else {}
    result = job.execute_in_process(
        run_config={**QUIET, **config},
        instance=instance,
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        partition_key=partition,
        tags=run_tags(),
        raise_on_error=False,
    )
    for event in result.all_events:
        if event.is_step_failure:
            raise StageFailed(_sentence(event.step_failure_data, event.step_key))
    if not result.success:
        raise StageFailed(f"the run {result.run_id} did not succeed; 'stemma up' shows its events")
    return [{"stage": name, "version": ledger.recorded(name)} for name in due]


def _wait_for_pools(instance: Any, assets: list[str]) -> None:
    """Wait, saying for whom, while another run holds a pool that these assets need; Dagster would wait silently."""
    from assets import STAGES

    storage, told = instance.event_log_storage, set()
    pools = {
        stage.pool for stage in STAGES if stage.name in assets and stage.pool
    } & storage.get_concurrency_keys()
    while taken := [info for info in map(storage.get_concurrency_info, pools) if _is_full(info)]:
        for info in taken:
            if info.concurrency_key not in told:
                told.add(info.concurrency_key)
                runs = ", ".join(sorted(run[:8] for run in info.active_run_ids))
                print(
                    f"waiting for run {runs}, which holds the pool '{info.concurrency_key}'", file=sys.stderr
                )
        time.sleep(POLL_SECONDS)


def _is_full(info: Any) -> bool:
    return info.active_slot_count >= info.slot_count > 0


def _sentence(failure: Any, step: str) -> str:
    """Return the innermost error's own words."""
    error = failure.error
    while error.cause:
        error = error.cause
    description = failure.user_failure_data.description if failure.user_failure_data else None
    words = error.message.strip()
    return f"{step} failed: {description or words.removeprefix(f'{error.cls_name}: ')}"


def status_rows(defs: Any, root: Path) -> list[dict[str, Any]]:
    """Return every stage's version, state (current, stale, missing), reasons, key numbers and seconds."""
    from resources.dagster_home import open_instance

    ledger = defs.resources["ledger"]
    rows = []
    with open_instance(root) as instance:
        for name, stage in ledger.chain.stages.items():
            recorded = ledger.recorded(name)
            reasons = ledger.changes(name)
            version, shown = latest_version(instance, stage.asset, stage.partition)
            if recorded and not reasons and version != recorded:
                reasons = ["Dagster does not know this version: run 'stemma sync'"]
            state = "missing" if not (ledger.root / stage.out).exists() else "stale" if reasons else "current"
            numbers = {n: v for n, v in shown.items() if isinstance(v, int | float) and n not in NOT_NUMBERS}
            rows.append(
                {
                    "stage": name,
                    "version": recorded,
                    "state": state,
                    "reasons": reasons,
                    "numbers": numbers,
                    "seconds": shown.get("seconds"),
                }
            )
    return rows
