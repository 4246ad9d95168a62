"""The chain, run from a terminal: what is out of date is built, through Dagster, and nothing else is touched."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets import STAGES
from core.errors import ConfigError, RunError
from jobs.status import due
from resources.dvc_ledger import DvcLedger
from resources.settings_check import check_settings

if TYPE_CHECKING:
    import dagster as dg

POLL_SECONDS = 0.5
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}  # the stages print their own messages


class StageFailed(RunError):
    """A stage did not succeed; the message names it and the reason."""


def materialize(
    root: Path,
    names: Sequence[str] | None,
    define: Callable[[Path], dg.Definitions],
    *,
    only: bool = False,
    force: bool = False,
) -> list[dict[str, str | None]]:
    """Bring stages up to date, and unless `only` what they are made from; return what was built, with versions.

    All settings and code.yaml are checked first. One Dagster run a crawl for the corpus, then one for everything that
    is not partitioned. `define` gives Dagster's definitions of a project; it is called, and Dagster imported, only
    where something is to be built. Raises StageFailed naming the first stage that failed, and the StemmaErrors of the
    checks.
    """
    ledger = DvcLedger(root)
    check_settings(ledger.chain, ledger.workspace.params())
    ledger.check_code()
    if not ledger.workspace.params().get("crawls"):
        raise ConfigError("params.yaml names no crawl. Add one: stemma materialize --crawl NAME=GLOB")
    wanted = ledger.chain.select(names)
    ledger.commit_checks()
    scope = wanted if only else ledger.chain.with_upstream(wanted)
    scope = [name for name in ledger.chain.stages if name in scope]
    forced = set(wanted) if force else set()
    if not due(ledger, scope, forced):
        return []
    return _build(ledger, define(ledger.root), scope, forced)


def _build(
    ledger: DvcLedger, defs: dg.Definitions, scope: list[str], forced: set[str]
) -> list[dict[str, str | None]]:
    from resources.dagster_home import close_dead_runs, open_instance

    stages = ledger.chain.stages
    made: list[dict[str, str | None]] = []
    with open_instance(ledger.root) as instance:
        close_dead_runs(instance)
        for partition in dict.fromkeys(stages[name].partition for name in scope):
            group = due(ledger, [name for name in scope if stages[name].partition == partition], forced)
            if group:
                made += _run(
                    defs, ledger, instance, group, partition, forced=bool(forced) and set(group) <= forced
                )
    return made


def _run(
    defs: dg.Definitions,
    ledger: DvcLedger,
    instance: dg.DagsterInstance,
    group: list[str],
    partition: str | None,
    *,
    forced: bool,
) -> list[dict[str, str | None]]:
    import dagster as dg

    from resources.dagster_home import run_tags

    assets = [ledger.chain.stage(name).asset for name in group]
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
            raise StageFailed(_sentence(event.step_failure_data, str(event.step_key)))
    if not result.success:
        raise StageFailed(f"the run {result.run_id} did not succeed; 'stemma up' shows its events")
    return [{"stage": name, "version": ledger.recorded(name)} for name in group]


def _wait_for_pools(instance: dg.DagsterInstance, assets: list[str]) -> None:
    """Wait, saying for which run, while another holds a pool that these assets need; Dagster would wait silently."""
    storage, reported = instance.event_log_storage, set()
    pools = {
        stage.pool for stage in STAGES if stage.name in assets and stage.pool
    } & storage.get_concurrency_keys()
    while taken := [info for info in map(storage.get_concurrency_info, pools) if _is_full(info)]:
        for info in taken:
            if info.concurrency_key not in reported:
                reported.add(info.concurrency_key)
                runs = ", ".join(sorted(run[:8] for run in info.active_run_ids))
                print(
                    f"waiting for run {runs}, which holds the pool '{info.concurrency_key}'", file=sys.stderr
                )
        time.sleep(POLL_SECONDS)


def _is_full(info: Any) -> bool:
    return info.active_slot_count >= info.slot_count > 0


def _sentence(failure: Any, step: str) -> str:
    """The innermost error's own message."""
    error = failure.error
    while error.cause:
        error = error.cause
    description = failure.user_failure_data.description if failure.user_failure_data else None
    message = error.message.strip()
    module, found, rest = message.partition(f"{error.cls_name}: ")  # 'core.errors.WorkspaceError: …'
    if found and " " not in module:
        message = rest
    return f"{step} failed: {description or message}"
