"""What a command loads before it has to: held by a list of imports, not by a clock (benchmarks/startup.py has one)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "dagster",
    "dvc",
    "mlflow",
    "pyarrow",
    "pandas",
    "numpy",
    "transformers",
    "deepspeed",
    "matplotlib",
    "datasets",
)


def loaded(root: Path, *arguments: str) -> set[str]:
    """The heavy libraries that a command has imported when it ends."""
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps(sorted({set(HEAVY)!r} & set(sys.modules))), file=sys.stderr))\n"
        f"sys.argv = ['stemma', *{list(arguments)!r}]\n"
        "import stemma\nstemma.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("materialize", "--help"),
        ("status",),
        ("status", "--json"),
        ("plan",),
        ("plan", "--json"),
    ],
)
def test_asking_loads_no_heavy_library(root: Path, arguments):
    assert loaded(root, *arguments) == set()


def test_a_demo_with_nothing_to_do_loads_no_heavy_library(built):
    assert loaded(built.root, "demo") == set()
    assert loaded(built.root, "materialize") == set()
    assert loaded(built.root, "why", "almanac.example") <= {"pyarrow", "numpy"}


def test_dagsters_log_read_directly_is_what_dagster_says(built):
    from resources import dagster_log
    from resources.dagster_home import open_instance
    from resources.dvc_ledger import DvcLedger

    stages = DvcLedger(built.root).chain.stages.values()
    direct = dagster_log.read_latest(built.root, stages)
    with open_instance(built.root) as instance:
        asked = {stage.name: dagster_log.latest(instance, stage) for stage in stages}
    assert {name: found.version for name, found in direct.items()} == {n: f.version for n, f in asked.items()}
    for name, found in asked.items():
        plain = {
            label: value for label, value in found.metadata.items() if isinstance(value, int | float | str)
        }
        assert plain and all(direct[name].metadata[label] == value for label, value in plain.items())


def test_an_unknown_log_is_asked_through_dagster(built, tmp_path: Path):
    import shutil
    import sqlite3

    from resources import dagster_log
    from resources.dvc_ledger import DvcLedger

    to = tmp_path / "project"
    shutil.copytree(built.root, to, symlinks=True)
    stages = list(DvcLedger(to).chain.stages.values())
    before = dagster_log.read_latest(to, stages)
    log = to / ".dagster/history/runs/index.db"
    with sqlite3.connect(log) as connection:  # a layout that this version of Stemma does not know
        connection.execute("DROP TABLE asset_event_tags")
    with pytest.raises(sqlite3.Error):
        dagster_log._read_sqlite(log, stages)
    after = dagster_log.read_latest(to, stages)
    assert {n: m.version for n, m in after.items()} == {n: m.version for n, m in before.items()}
