"""Dagster's memory of this project: where it lives, how to open it, and how to close runs that died."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

PID_TAG, HOST_TAG = "stemma/pid", "stemma/host"


def dagster_home(root: Path) -> Path:
    """Return DAGSTER_HOME (`.dagster/` unless the environment says otherwise), ready to use, and export it."""
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(root / ".dagster")))
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        settings.unlink(missing_ok=True)  # a link that points nowhere
        settings.symlink_to(os.path.relpath(root / "dagster.yaml", home))
    return home


def open_instance(root: Path, in_terminal: bool = True) -> Any:
    """Open the Dagster instance. `in_terminal` leaves stdout and stderr alone, so that progress bars are seen."""
    from dagster import DagsterInstance
    from dagster._core.instance import InstanceRef

    home = dagster_home(root)
    overrides = (
        {
            "compute_logs": {
                "module": "dagster._core.storage.noop_compute_log_manager",
                "class": "NoOpComputeLogManager",
            }
        }
        if in_terminal
        else None
    )
    return DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=overrides))


def run_tags() -> dict[str, str]:
    """Return the tags by which `close_dead_runs` knows that the process of a run is gone."""
    import psutil

    started = psutil.Process().create_time()
    return {PID_TAG: f"{os.getpid()}@{started:.0f}", HOST_TAG: socket.gethostname()}


def close_dead_runs(instance: Any) -> list[str]:
    """Report as failed every started run of this host whose process has ended; return their ids.

    Their places in pools are freed too: Dagster keeps them until a daemon looks, and the next run would wait for ever.
    """
    from dagster import DagsterRunStatus, RunsFilter

    unfinished = RunsFilter(
        statuses=[DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING, DagsterRunStatus.STARTING],
        tags={HOST_TAG: socket.gethostname()},
    )
    dead = [run for run in instance.get_runs(unfinished) if not _alive(run.tags.get(PID_TAG, ""))]
    for run in dead:
        instance.report_run_failed(run, "The process that ran it is gone (killed, or the machine restarted).")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in dead]


def _alive(tag: str) -> bool:
    import psutil

    pid, _, started = tag.partition("@")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    except (ValueError, psutil.NoSuchProcess):
        return False
