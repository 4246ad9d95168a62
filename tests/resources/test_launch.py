"""A training script is started, its output and result come back, and it ends with its step."""

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import dagster as dg
import pytest
from processes import alive

from resources.launch import TrainingLauncher, own_cpu_seconds

SCRIPT = textwrap.dedent("""
    import argparse, json, os, pathlib, sys
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    config = json.loads(pathlib.Path(parser.parse_args().config).read_text())
    params = config["params"]
    print("a line on stdout", flush=True)
    print("\\r10 %\\r20 %\\r100 %", file=sys.stderr)
    if params.get("fail"):
        print("loss is not finite at step 7", file=sys.stderr)
        sys.exit(params["fail"])
    if params.get("die"):
        os.kill(os.getpid(), 9)
    if params.get("wait"):
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
        pathlib.Path(params["wait"], str(os.getpid())).touch()
        while True:
            time.sleep(0.05)
    keys = ("OMP_NUM_THREADS", "DS_ACCELERATOR", "PYTHONUNBUFFERED", "HF_HUB_DISABLE_TELEMETRY", "RANK", "WORLD_SIZE")
    result = {"env": {k: os.environ.get(k) for k in keys}, "loss": 0.5, "stderr_is_terminal": sys.stderr.isatty()}
    if params.get("no_result"):
        sys.exit(0)
    if os.environ.get("RANK", "0") != "0":
        sys.exit(0)
    if "DAGSTER_PIPES_CONTEXT" in os.environ:
        from dagster_pipes import open_dagster_pipes
        with open_dagster_pipes() as pipes:
            pipes.log.info("hello from the script")
            pipes.report_custom_message({"result": {**result, "by": "pipes"}})
    else:
        pathlib.Path(config["result"]).write_text(json.dumps({**result, "by": "file"}))
""")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def launcher(project: Path, **fields) -> TrainingLauncher:
    return TrainingLauncher(root=str(project), grace=0.3, **fields)


def materialize(project: Path, params: dict, instance: dg.DagsterInstance, **fields):
    results: list[dict] = []

    @dg.asset
    def model(context: dg.AssetExecutionContext, training: TrainingLauncher):
        results.append(training.run(context, "script", {"params": params}, project / "work"))
        return dg.MaterializeResult()

    done = dg.materialize(
        [model], resources={"training": launcher(project, **fields)}, instance=instance, raise_on_error=False
    )
    return done, results


def test_a_script_runs_without_dagster_and_reports_by_file(project, capfd):
    result = launcher(project).run(None, "script", {"params": {"depth": 2}}, project / "work")
    assert (result["by"], result["loss"]) == ("file", 0.5)
    assert json.loads((project / "work/config.json").read_text())["params"] == {"depth": 2}
    shown = capfd.readouterr()
    assert "a line on stdout" in shown.out and "100 %" in shown.err


def test_a_script_in_dagster_reports_by_pipes_and_logs_there(project, capfd):
    with dg.DagsterInstance.ephemeral() as instance:
        done, results = materialize(project, {}, instance)
        logged = [entry.user_message for entry in instance.all_logs(done.run_id)]
    assert done.success
    assert results[0]["by"] == "pipes"
    assert "hello from the script" in logged


def test_the_cpu_time_of_our_children_is_counted_as_ours():
    before = own_cpu_seconds()
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert own_cpu_seconds() - before >= 0.25
        child.kill()


def test_threads_sleep_while_they_wait_where_the_machine_is_busy(project, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for idle, threads, policy in ((0.9, 2, "PASSIVE"), (1.9, 2, None), (0.1, 1, None)):
        monkeypatch.setattr("resources.launch.idle_cores", lambda idle=idle: idle)
        assert launcher(project).environment({"threads": threads}).get("OMP_WAIT_POLICY") == policy
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert launcher(project).environment({"threads": 2})["OMP_WAIT_POLICY"] == "ACTIVE"


def test_the_environment_fixes_threads_and_turns_telemetry_off(project, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    env = launcher(project).run(None, "script", {"params": {}}, project / "work")["env"]
    assert env["OMP_NUM_THREADS"] == "2"
    assert env["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert env["PYTHONUNBUFFERED"] == "1"
    env = launcher(project).run(None, "script", {"params": {"threads": 1}}, project / "work")["env"]
    assert env["OMP_NUM_THREADS"] == "1"


def test_the_cpu_is_named_to_deepspeed_only_where_there_is_no_gpu(project, monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    for gpu, named in ((False, "cpu"), (True, None)):
        monkeypatch.setattr("resources.launch._has_gpu", lambda gpu=gpu: gpu)
        assert launcher(project).environment({}).get("DS_ACCELERATOR") == named


def test_a_failure_says_what_happened_and_how_to_continue(project):
    with pytest.raises(dg.Failure) as failure:
        launcher(project).run(None, "script", {"params": {"fail": 3}}, project / "work")
    message = failure.value.description
    assert "exit code 3" in message
    assert "loss is not finite at step 7" in message
    assert "\n100 %\n" in message and "10 %" not in message.replace(
        "100 %", ""
    )  # only the last state of the bar
    assert "materialize again" in message and f"-m script --config {project}/work/config.json" in message
    assert failure.value.metadata["exit_code"].value == 3


def test_a_killed_script_fails_the_asset_with_the_likely_cause(project):
    with dg.DagsterInstance.ephemeral() as instance:
        done, results = materialize(project, {"die": True}, instance)
        failed = [e for e in done.all_events if e.event_type_value == "STEP_FAILURE"]
    assert not done.success and not results
    assert "SIGKILL" in failed[0].step_failure_data.user_failure_data.description


def test_the_result_of_an_earlier_attempt_is_not_taken_for_this_one(project):
    launcher(project).run(None, "script", {"params": {}}, project / "work")
    with pytest.raises(dg.Failure, match="reported no result"):
        launcher(project).run(None, "script", {"params": {"no_result": True}}, project / "work")


def test_a_bar_is_drawn_on_a_terminal(project, root):
    code = (
        "import sys; from pathlib import Path; from resources.launch import TrainingLauncher\n"
        f"p = Path({str(project)!r})\n"
        "r = TrainingLauncher(root=str(p)).run(None, 'script', {'params': {}}, p / 'work')\n"
        "sys.exit(0 if r['stderr_is_terminal'] else 9)"
    )
    ours, theirs = pty.openpty()
    outer = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=theirs)
    os.close(theirs)
    assert outer.wait(60) == 0
    assert b"\r100 %" in os.read(ours, 65536)
    os.close(ours)


STEP = textwrap.dedent("""
    import sys
    from pathlib import Path
    import dagster as dg
    from resources.launch import TrainingLauncher
    project = Path(sys.argv[1])

    @dg.asset
    def model(context, training: TrainingLauncher):
        training.run(context, "script", {"params": {"wait": str(project / "pids")}}, project / "work")

    dg.materialize([model], resources={"training": TrainingLauncher(root=str(project), grace=0.3)})
""")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_cancelled_or_killed_step_leaves_no_process(project, root, number):
    (project / "pids").mkdir()
    step = subprocess.Popen(
        [sys.executable, "-c", STEP, str(project)],
        cwd=root,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(pids := [int(p.name) for p in (project / "pids").iterdir()]) < 2:
        assert step.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    step.send_signal(number)
    step.wait(60)
    if number == signal.SIGKILL:  # otherwise the exception is raised only when every process has ended
        while any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


@pytest.mark.slow
def test_several_processes_run_under_torchrun(project):
    env = launcher(project, nproc=2).run(None, "script", {"params": {"threads": 1}}, project / "work")["env"]
    assert (env["WORLD_SIZE"], env["RANK"], env["OMP_NUM_THREADS"]) == ("2", "0", "1")
