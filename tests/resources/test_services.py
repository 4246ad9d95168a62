"""`stemma up` starts everything, prints the addresses, and leaves no process behind."""

import json
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request

import psutil
import pytest

from resources.services import free_port

DEFINITIONS = textwrap.dedent("""
    import dagster as dg

    @dg.asset
    def a_small_asset():
        return None

    defs = dg.Definitions([a_small_asset])
""")
RUN = textwrap.dedent("""
    import sys
    from pathlib import Path
    from resources.services import run_services
    run_services(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    print("left in order", flush=True)
""")


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "dagster.yaml").write_text("telemetry: { enabled: false }\nnux: { enabled: false }\n")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_taken_port_is_skipped():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        assert free_port(taken) > taken


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_both_uis_answer_and_nothing_is_left_afterwards(project, root, number):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        services = subprocess.Popen(
            [sys.executable, "-c", RUN, str(project), str(taken), str(taken)],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            lines = []
            while not lines or "Ctrl-C" not in lines[-1]:
                lines.append(services.stdout.readline())
                assert lines[-1], "ended early: " + "".join(lines)
            address = {line.split(": ")[0]: line.split(": ")[1].strip() for line in lines if "http" in line}
            assert f"Port {taken} is taken" in lines[0]
            query = {"query": "{ assetNodes { assetKey { path } } }"}
            request = urllib.request.Request(
                address["Dagster UI"] + "/graphql",
                json.dumps(query).encode(),
                {"Content-Type": "application/json"},
            )
            assert "a_small_asset" in urllib.request.urlopen(request, timeout=30).read().decode()
            assert b"MLflow" in urllib.request.urlopen(address["MLflow UI"], timeout=30).read()
            started = psutil.Process(services.pid).children(recursive=True)
            assert len(started) > 4
        finally:
            services.send_signal(number)
            rest, _ = services.communicate(timeout=90)
    assert not psutil.wait_procs(started, timeout=60)[1]
    if number == signal.SIGINT:
        assert services.returncode == 0 and "left in order" in rest


@pytest.mark.slow
def test_definitions_that_do_not_load_still_give_a_ui(project, root):
    """Dagster shows the error in its UI; we must not stop because of it."""
    (project / "definitions.py").write_text("raise RuntimeError('broken on purpose')")
    services = subprocess.Popen(
        [sys.executable, "-c", RUN, str(project), "3700", "5700"], cwd=root, stdout=subprocess.PIPE, text=True
    )
    try:
        while "Dagster UI: http" not in (line := services.stdout.readline()):
            assert line, "ended early"
    finally:
        services.send_signal(signal.SIGTERM)
        services.communicate(timeout=90)
    assert services.returncode == 0
