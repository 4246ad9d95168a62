"""A run cancelled in the Dagster UI, or whose step is killed there, leaves no training behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request

import psutil
import pytest

pytestmark = pytest.mark.slow  # starts all of Dagster for one test

DEFINITIONS = textwrap.dedent("""
    from pathlib import Path
    import dagster as dg
    from resources.launch import TrainingLauncher
    ROOT = Path(__file__).parent

    @dg.asset
    def model(context: dg.AssetExecutionContext, training: TrainingLauncher):
        training.run(context, "stubborn", {}, ROOT / "work")

    defs = dg.Definitions(
        [model],
        jobs=[dg.define_asset_job("train", [model])],
        resources={"training": TrainingLauncher(root=str(ROOT), grace=1)},
        executor=dg.multiprocess_executor.configured({"start_method": {"forkserver": {}}}),
    )
""")
STUBBORN = textwrap.dedent("""
    import os, pathlib, signal, time
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
    pathlib.Path("pids", str(os.getpid())).touch()
    while True:
        time.sleep(0.05)
""")
RUN = (
    "import sys; from pathlib import Path; from resources.services import run_services\n"
    "run_services(Path(sys.argv[1]), 3800, 5800)"
)
LAUNCH = """mutation($tags: [ExecutionTag!]) { launchRun(executionParams: {
    selector: {jobName: "train", repositoryName: "__repository__", repositoryLocationName: "definitions"},
    executionMetadata: {tags: $tags}}) { __typename ... on LaunchRunSuccess { run { runId } } } }"""
CANCEL = "mutation($id: String!) { terminateRun(runId: $id) { __typename } }"
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


@pytest.fixture
def dagster(tmp_path, root, monkeypatch):
    """Starts the services on a project with a training that ignores signals; yields a way to query Dagster."""
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "pids").mkdir()
    (tmp_path / "dagster.yaml").write_text("telemetry: { enabled: false }\n")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    services = subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    address = ""
    while "Ctrl-C" not in (line := services.stdout.readline()):
        assert line, "ended early"
        if "Dagster UI" in line:
            address = line.split(": ")[1].strip()

    def ask(query: str, **variables) -> dict:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(address + "/graphql", body, {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        assert "errors" not in answer, answer
        return next(iter(answer["data"].values()))

    yield ask
    services.terminate()
    services.communicate(timeout=90)


def wait_for(what, seconds: float = 90.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.1)
    return found


def training(tmp_path) -> list[psutil.Process]:
    wait_for(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    return [psutil.Process(int(path.name)) for path in (tmp_path / "pids").iterdir()]


@pytest.mark.parametrize("how", ["cancel", "kill the step"])
def test_a_run_that_is_stopped_leaves_no_training(dagster, tmp_path, how):
    run = dagster(LAUNCH, tags=[])["run"]["runId"]
    processes = training(tmp_path)
    if how == "cancel":
        dagster(CANCEL, id=run)
    else:
        supervisor = processes[0].parents()[0]
        while "supervisor.py" not in " ".join(supervisor.cmdline()):
            supervisor = supervisor.parent()
        os.kill(supervisor.ppid(), signal.SIGKILL)
    assert not psutil.wait_procs(processes, timeout=60)[1]
    ended = wait_for(lambda: (s := dagster(STATUS, id=run)["status"]) in ("CANCELED", "FAILURE") and s)
    assert ended == ("CANCELED" if how == "cancel" else "FAILURE")
