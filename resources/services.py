"""`stemma up`: the Dagster UI with its daemon, and the MLflow UI, on this machine only; all gone at the end.

Each service runs under `resources.supervisor`, so Ctrl-C, SIGTERM, or even a SIGKILL of ours leaves no process
behind, not even a training that Dagster had started. `dagster dev` is webserver, daemon (schedules, sensors, run
queue) and one code server that both share. Their talk goes to log files; the terminal shows addresses.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.supervisor import Supervised

HOST = "127.0.0.1"  # neither UI asks who you are: they must not be reachable from outside
PATIENCE = 180.0  # seconds for a service to answer; a cold start on a slow disk takes one minute
GRACE = 20.0  # seconds for runs under way to end on their own
LAST_LINES = 15  # of a service's log, when it has ended unasked


class ServiceError(RuntimeError):
    """A service that cannot be started or has ended, with its last words."""


@dataclass
class Service:
    """One service under way."""

    name: str
    address: str
    log: Path
    process: Supervised

    def answers(self, path: str) -> bool:
        try:
            return urllib.request.urlopen(f"{self.address}{path}", timeout=2).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def last_words(self) -> str:
        lines = self.log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
        return "\n".join(lines) or "(nothing)"


class _Stop(BaseException):
    """Someone asked us to stop."""


def run_services(
    root: Path,
    dagster_port: int = 3000,
    mlflow_port: int = 5000,
    say: Callable[[str], Any] = lambda line: print(line, flush=True),
    tracker: Any = None,
) -> None:
    """Start all, say where they are, and wait until Ctrl-C, SIGTERM or SIGHUP; then stop all of it.

    A port that is taken is replaced by the next free one, and said. Must run in the main thread. Raises
    ServiceError when a service does not start, or Dagster ends unasked; without MLflow's UI the rest goes on, for
    runs are tracked without it.
    """
    from resources.dagster_home import dagster_home
    from resources.tracking import MlflowTracker

    root = Path(root).resolve()
    logs = dagster_home(root) / "services"
    logs.mkdir(parents=True, exist_ok=True)
    tracker = tracker or MlflowTracker(root=str(root))
    with _stop_at_signals(), ExitStack() as stack:
        try:
            dagster = _start_dagster(stack, root, logs, dagster_port, say)
            mlflow = _start_mlflow(stack, root, logs, mlflow_port, tracker, say, dagster.address)
            _wait_until_ready(dagster, "/server_info", say)
            if mlflow:
                _wait_until_ready(mlflow, "/health", say)
            say(f"Logs are in {logs}. Ctrl-C stops everything.")
            _watch(dagster, mlflow, say)
        except _Stop:
            say("Stopping…")
            stack.close()
            say("Stopped; no process is left.")


def free_port(wanted: int, taken: tuple[str, ...] = ()) -> int:
    """The wanted port, or the next one on which nobody listens; `taken` are addresses given out already."""
    for port in range(wanted, min(wanted + 200, 65536)):
        if any(address.endswith(f":{port}") for address in taken):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServiceError(f"No free port from {wanted} on; name another with --port or --mlflow-port.")


def _start_dagster(
    stack: ExitStack, root: Path, logs: Path, wanted: int, say: Callable[[str], Any]
) -> Service:
    port = _port("Dagster", wanted, (), say)
    argv = [sys.executable, "-m", "dagster", "dev", "-h", HOST, "-p", str(port)]
    argv += ["-m", "definitions", "-d", str(root)]
    return _start(stack, "Dagster UI", port, argv, dict(os.environ), root, logs / "dagster.log")


def _start_mlflow(
    stack: ExitStack, root: Path, logs: Path, wanted: int, tracker: Any, say: Callable[[str], Any], taken: str
) -> Service | None:
    port = _port("MLflow", wanted, (taken,), say)
    try:
        argv, env = tracker.server_command(HOST, port)
    except ValueError as error:  # runs go to a server elsewhere
        say(str(error))
        return None
    return _start(stack, "MLflow UI", port, argv, env, root, logs / "mlflow.log")


def _port(name: str, wanted: int, taken: tuple[str, ...], say: Callable[[str], Any]) -> int:
    port = free_port(wanted, taken)
    if port != wanted:
        say(f"Port {wanted} is taken; {name} uses {port}.")
    return port


def _start(
    stack: ExitStack, name: str, port: int, argv: list[str], env: dict[str, str], root: Path, log: Path
) -> Service:
    with open(log, "wb") as file:
        process = Supervised(argv, cwd=root, env=env, stdout=file.fileno(), stderr=file.fileno(), grace=GRACE)
    stack.enter_context(process)
    return Service(name, f"http://{HOST}:{port}", log, process)


def _wait_until_ready(service: Service, path: str, say: Callable[[str], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not service.answers(path):
        if service.process.poll() is not None:
            raise ServiceError(
                f"{service.name} did not start. The end of {service.log}:\n{service.last_words()}"
            )
        if time.monotonic() > deadline:
            raise ServiceError(f"{service.name} does not answer after {PATIENCE:.0f} s; see {service.log}.")
        time.sleep(0.2)
    say(f"{service.name}: {service.address}")


def _watch(dagster: Service, mlflow: Service | None, say: Callable[[str], Any]) -> None:
    while True:
        time.sleep(1)
        if dagster.process.poll() is not None:
            raise ServiceError(f"{dagster.name} has ended. The end of {dagster.log}:\n{dagster.last_words()}")
        if mlflow and mlflow.process.poll() is not None:
            say(f"{mlflow.name} has ended; runs are tracked all the same. Why: see {mlflow.log}.")
            mlflow = None


@contextmanager
def _stop_at_signals() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into _Stop, also where a shell's '&' had us ignore them."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough; the grace has its own end
        raise _Stop

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
