"""The same units on a local pool, Ray and Slurm: the same bytes whatever is killed, and no process left behind."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import engine_units
import fake_slurm
import psutil
import pytest
from engine_units import Number
from processes import alive
from small_web import content, files_of

from corpus import clean
from corpus.clean import CleanConfig, CleaningFailed, clean_crawl
from corpus.engines.choose import choose_engine
from corpus.engines.engine import Engine, WorkerFailed
from corpus.engines.pool import LocalEngine
from corpus.engines.slurm import SlurmEngine
from corpus.engines.wire import encode_batch

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
LOCAL, SLURM, RAY = "local", "slurm", pytest.param("ray", marks=needs_ray)
# A Ray costs eight seconds of processor to start and one for each unit; a real Slurm is not on most machines.
SLOW = [
    pytest.param("ray", marks=[needs_ray, pytest.mark.slow]),
    pytest.param("real slurm", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def undisturbed(sample, tmp_path_factory) -> dict[str, str]:
    """What the sample gives when it is cleaned in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    clean_crawl(files_of(sample), folder / "out", folder / "work", CleanConfig(), workers=0)
    return content(folder / "out")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """One Ray on this machine for all tests, in the place of a cluster: the engine connects to it."""
    from corpus.engines.ray_engine import RayEngine

    cluster = RayEngine(workers=2)
    cluster._ray()
    yield
    cluster.close()


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch) -> Path:
    """The fake Slurm's commands on the PATH; returns the folder of its jobs."""
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("FAKE_SLURM", str(folder / "jobs"))
    monkeypatch.setenv("PATH", f"{fake_slurm.install(folder / 'bin')}{os.pathsep}{os.environ['PATH']}")
    (folder / "jobs").mkdir()
    return folder / "jobs"


@pytest.fixture
def make_engine(request, tmp_path):
    """Make the engine of a name."""

    def make(name: str) -> Engine:
        if name == "local":
            return LocalEngine(workers=2)
        if name == "ray":
            from corpus.engines.ray_engine import RayEngine

            request.getfixturevalue("ray_cluster")
            return RayEngine(workers=2)
        if name == "real slurm":
            found = shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True).returncode == 0
            if not found:
                pytest.skip("no Slurm answers here")
        else:
            request.getfixturevalue("slurm")
        return SlurmEngine(tmp_path / "jobs", workers=2, poll=0.1)

    return make


@pytest.mark.parametrize("name", [LOCAL, SLURM, RAY, SLOW[1]])
def test_units_and_workers_may_be_killed_anywhere_and_the_bytes_are_the_same(
    name, sample, undisturbed, make_engine, tmp_path, monkeypatch
):
    local = name == "local"  # there the worker's parent is the run itself, which test_clean.py kills
    unit = engine_units.unit_killed_once if local else engine_units.all_killed_once
    monkeypatch.setattr(clean, "clean_unit", unit)
    out, work = tmp_path / "out", tmp_path / "work"
    clean_crawl(files_of(sample), out, work, CleanConfig(), engine=make_engine(name))
    assert len(list(work.rglob("*.was_killed"))) == (1 if local else 2)
    assert content(out) == undisturbed


@pytest.mark.parametrize("name", [LOCAL, SLURM, *SLOW])
def test_a_run_after_a_failed_one_continues_it(name, sample, undisturbed, make_engine, tmp_path, monkeypatch):
    engine, out, work = make_engine(name), tmp_path / "out", tmp_path / "work"
    monkeypatch.setattr(clean, "clean_unit", engine_units.refused_once)
    with pytest.raises(CleaningFailed, match="Free some space and run it again"):
        clean_crawl(files_of(sample), out, work, CleanConfig(), engine=engine)
    assert not out.exists()
    done = {unit: unit.stat().st_mtime_ns for unit in work.glob("units/*/unit.json")}
    clean_crawl(files_of(sample), out, work, CleanConfig(), engine=engine)
    assert {unit: unit.stat().st_mtime_ns for unit in done} == done and len(done) < 3
    assert content(out) == undisturbed


@pytest.mark.parametrize("name", [LOCAL, SLURM, *SLOW])
def test_a_run_that_is_abandoned_leaves_no_process(name, make_engine, tmp_path):
    (tmp_path / "pids").mkdir()
    run = make_engine(name).run(
        engine_units.wait_long, [Number(value, tmp_path / "pids") for value in range(3)]
    )
    assert next(run) == (0, 0)
    wait_for(lambda: (tmp_path / "pids" / "1.pid").exists())
    run.close()
    pids = [int(file.read_text()) for file in (tmp_path / "pids").glob("*.pid")]
    wait_for(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize("name", [LOCAL, SLURM, *SLOW])
def test_results_progress_and_errors_come_back(name, make_engine, tmp_path):
    engine, reported = make_engine(name), []
    tasks = [Number(value, tmp_path) for value in (3, 4, 5)]
    results = dict(engine.run(engine_units.square, tasks, reported.append))
    assert results == {0: {"square": 9}, 1: {"square": 16}, 2: {"square": 25}}
    assert sum(reported) == 12
    with pytest.raises(WorkerFailed, match="the number 1 is not for me"):
        list(engine.run(engine_units.refuse, [Number(1, tmp_path)]))


@pytest.mark.parametrize("name", [SLURM, *SLOW])
def test_a_task_that_kills_every_worker_fails(name, make_engine, tmp_path, monkeypatch):
    monkeypatch.setattr("corpus.engines.slurm.MAX_DEATHS", 2)
    if name == "ray":
        monkeypatch.setattr("corpus.engines.ray_engine.MAX_DEATHS", 2)
    with pytest.raises(WorkerFailed, match=r"2 .* died on the same task"):
        list(make_engine(name).run(engine_units.always_killed, [Number(1, tmp_path)]))


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_more_units_than_an_array_may_have_share_its_elements(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr("corpus.engines.slurm.MAX_ELEMENTS", 2)
    tasks = [Number(value, tmp_path) for value in range(5)]
    results = dict(SlurmEngine(tmp_path / "jobs", poll=0.1).run(engine_units.square, tasks))
    assert results == {value: {"square": value**2} for value in range(5)}
    assert [file.parent.name for file in slurm.glob("*/1.ended")] == ["1"] and not list(slurm.glob("*/2.*"))


DRIVER = """
import sys
from pathlib import Path
from corpus.engines.slurm import SlurmEngine
from engine_units import Number, wait_long
folder = Path(sys.argv[1])
tasks = [Number(value, folder) for value in (1, 2)]
list(SlurmEngine(folder / "jobs", poll=0.1, heartbeat_timeout=float(sys.argv[2])).run(wait_long, tasks))
"""


def start_driver(folder: Path, heartbeat_timeout: float) -> tuple[subprocess.Popen, list[int]]:
    """A run of its own that waits for two units; returns it and the units' processes."""
    path = os.pathsep.join([str(Path(engine_units.__file__).parent), *sys.path])
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), str(heartbeat_timeout)],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: len([f for f in folder.glob("*.pid") if f.stat().st_size]) == 2)
    return driver, [int(file.read_text()) for file in folder.glob("*.pid")]


def test_an_interrupt_cancels_the_jobs(slurm, tmp_path):
    driver, units = start_driver(tmp_path, heartbeat_timeout=600)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) != 0
    assert SlurmEngine(tmp_path / "jobs").alive() == set()
    wait_for(lambda: not any(alive(pid) for pid in units))


def test_the_jobs_of_a_killed_run_end_themselves(slurm, tmp_path):
    driver, units = start_driver(tmp_path, heartbeat_timeout=1)
    assert all(alive(pid) for pid in units)
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(alive(pid) for pid in units))


def test_the_next_run_ends_the_jobs_of_a_killed_one(slurm, tmp_path):
    driver, units = start_driver(tmp_path, heartbeat_timeout=600)
    driver.kill()
    driver.wait()
    assert dict(SlurmEngine(tmp_path / "jobs", poll=0.1).run(engine_units.square, [Number(3, tmp_path)]))
    wait_for(lambda: not any(alive(pid) for pid in units))


def test_a_controller_that_does_not_answer_for_a_while_is_called_again(slurm, tmp_path):
    squeue = slurm.parent / "bin" / "squeue"
    whole = squeue.read_text()
    down = "#!/bin/sh\necho 'Unable to contact slurm controller' >&2\n"
    squeue.write_text(f'{down}printf "%s" {whole!r} >/dev/null\nmv "{squeue}.whole" "{squeue}"\nexit 1\n')
    squeue.with_name("squeue.whole").write_text(whole)
    squeue.with_name("squeue.whole").chmod(0o755)
    assert SlurmEngine(tmp_path / "jobs").alive() == set()
    assert squeue.read_text() == whole


def test_errors_of_the_user_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no engine 'spark'\. Choose one of: local, ray, slurm"):
        choose_engine("spark", tmp_path)
    with pytest.raises(ValueError, match="at least one worker"):
        choose_engine("slurm", tmp_path, workers=0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkerFailed, match="needs sbatch, squeue, scancel on the PATH"):
        list(choose_engine("slurm", tmp_path).run(engine_units.square, [Number(1, tmp_path)]))
    with pytest.raises(ValueError, match="cannot be imported by name"):
        encode_batch(lambda task, progress: 1, None, [Number(1, tmp_path)], [0])


def test_the_chain_takes_its_engine_from_the_environment(monkeypatch):
    from resources.engine import ExecutionEngine

    assert ExecutionEngine.from_environment().settings() == {"engine": "local", "workers": None}
    monkeypatch.setenv("STEMMA_ENGINE", "slurm")
    monkeypatch.setenv("STEMMA_WORKERS", "40")
    assert ExecutionEngine.from_environment().settings() == {"engine": "slurm", "workers": 40}
    monkeypatch.setenv("STEMMA_ENGINE", "spark")
    with pytest.raises(ValueError, match="local"):
        ExecutionEngine.from_environment()


def test_no_child_of_the_engines_is_left(tmp_path):
    """Runs last in this file: nothing that a test above started is still here."""
    left = [p for p in psutil.Process().children(recursive=True) if "engines.pool" in " ".join(p.cmdline())]
    assert left == []
