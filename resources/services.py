"""`stemma up`: the Dagster UI with its daemon, and the MLflow UI, on this machine only; all stopped at the end.

Each service runs under `resources.supervised`, so Ctrl-C, SIGTERM, or even a SIGKILL of this process leaves no process
behind, not even a training that Dagster had started. `dagster dev` is webserver, daemon (schedules, sensors, run
queue) and one code server that both share. Their output goes to log files; the terminal shows addresses.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import RunError
from resources.supervised import Supervised
from resources.tracking import MlflowTracker

HOST = "127.0.0.1"  # neither UI has authentication: they must not be reachable from outside
START_TIMEOUT = 180.0  # seconds for a service to answer; a cold start on a slow disk takes one minute
GRACE = 20.0  # seconds for runs under way to end on their own
LAST_LINES = 15  # of a service's log, shown when it ended unexpectedly


class ServiceError(RunError):
    """A service that cannot be started or ended unexpectedly, with the end of its log."""


@dataclass
class Service:
    """A running service."""

    name: str
    address: str
    log_file: Path
    process: Supervised

    def answers(self, path: str) -> bool:
        """Whether a GET of this path returns 200 within 2 seconds."""
        try:
            return urllib.request.urlopen(f"{self.address}{path}", timeout=2).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def log_tail(self) -> str:
        """The last lines of its log."""
        lines = self.log_file.read_text("utf-8", "replace").splitlines()[-LAST_LINES:]
        return "\n".join(lines) or "(empty)"


class _StopRequested(BaseException):
    """We received a signal to stop."""


def run_services(root: Path, dagster_port: int = 3000, mlflow_port: int = 5000) -> None:
    """Start all services, print their addresses, and wait until Ctrl-C, SIGTERM or SIGHUP; then stop all of them.

    A port that is taken is replaced by the next free one, and reported. Must run in the main thread. Raises
    ServiceError when a service does not start, or Dagster ends unexpectedly; the MLflow UI may end without stopping
    the rest, because runs are tracked without it.
    """
    from resources.dagster_home import dagster_home

    root = Path(root).resolve()
    logs = dagster_home(root) / "services"
    logs.mkdir(parents=True, exist_ok=True)
    with _stop_at_signals(), ExitStack() as stack:
        try:
            dagster = _start_dagster(stack, root, logs, dagster_port)
            mlflow = _start_mlflow(stack, root, logs, mlflow_port, MlflowTracker(root), dagster.address)
            _wait_until_ready(dagster, "/server_info")
            if mlflow:
                _wait_until_ready(mlflow, "/health")
            _log(f"Logs are in {logs}. Ctrl-C stops everything.")
            _watch(dagster, mlflow)
        except _StopRequested:
            _log("Stopping…")
            stack.close()
            _log("Stopped; no process is left.")


def free_port(wanted: int, taken: tuple[str, ...] = ()) -> int:
    """The wanted port, or the next one that is free; `taken` are addresses already assigned."""
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
    raise ServiceError(f"No free port from {wanted} on. Choose another with --port or --mlflow-port.")


def _start_dagster(stack: ExitStack, root: Path, logs: Path, wanted: int) -> Service:
    port = _port("Dagster", wanted, ())
    argv = [sys.executable, "-m", "dagster", "dev", "-h", HOST, "-p", str(port)]
    argv += ["-m", "definitions", "-d", str(root)]
    return _start(stack, "Dagster UI", port, argv, dict(os.environ), root, logs / "dagster.log")


def _start_mlflow(
    stack: ExitStack, root: Path, logs: Path, wanted: int, tracker: MlflowTracker, taken: str
) -> Service | None:
    if tracker.store().is_server:
        _log(f"MLflow runs at {tracker.store()}; open that address.")
        return None
    port = _port("MLflow", wanted, (taken,))
    argv, env = tracker.server_command(HOST, port)
    return _start(stack, "MLflow UI", port, argv, env, root, logs / "mlflow.log")


def _port(name: str, wanted: int, taken: tuple[str, ...]) -> int:
    port = free_port(wanted, taken)
    if port != wanted:
        _log(f"Port {wanted} is taken; {name} uses {port}.")
    return port


def _start(
    stack: ExitStack, name: str, port: int, argv: list[str], env: dict[str, str], root: Path, log_file: Path
) -> Service:
    with open(log_file, "wb") as file:
        process = Supervised(argv, cwd=root, env=env, stdout=file.fileno(), stderr=file.fileno(), grace=GRACE)
    stack.enter_context(process)
    return Service(name, f"http://{HOST}:{port}", log_file, process)


def _wait_until_ready(service: Service, path: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not service.answers(path):
        if service.process.poll() is not None:
            raise ServiceError(
                f"{service.name} did not start. The end of {service.log_file}:\n{service.log_tail()}"
            )
        if time.monotonic() > deadline:
            raise ServiceError(
                f"{service.name} does not answer after {START_TIMEOUT:.0f} s; see {service.log_file}."
            )
        time.sleep(0.2)
    _log(f"{service.name}: {service.address}")


def _watch(dagster: Service, mlflow: Service | None) -> None:
    while True:
        time.sleep(1)
        if dagster.process.poll() is not None:
            raise ServiceError(
                f"{dagster.name} has ended. The end of {dagster.log_file}:\n{dagster.log_tail()}"
            )
        if mlflow and mlflow.process.poll() is not None:
            _log(f"{mlflow.name} has ended; runs are still tracked. The reason is in {mlflow.log_file}.")
            mlflow = None


def _log(line: str) -> None:
    print(line, flush=True)


@contextmanager
def _stop_at_signals() -> Iterator[None]:
    """Raise _StopRequested on SIGINT, SIGTERM and SIGHUP, also where a shell's '&' had set them to be ignored."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough; the grace period is bounded
        raise _StopRequested

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
