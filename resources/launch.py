"""Runs a training script as an external process and returns its result.

The script (`python -m model.pretrain --config FILE.json`, under torchrun for several processes) uses nothing of
Dagster but `dagster-pipes`. Notable:
- it runs under `resources.supervised`: when the step fails, is cancelled or killed, no process is left;
- its output goes where ours goes: to the terminal (through a pseudo-terminal, so that progress bars work there)
  or to Dagster's compute log; the last lines are kept for the error message of a failure;
- its result is returned as the Pipes message {"result": {...}}, or in the JSON file config["result"];
- the number of threads is fixed and not the machine's, because sums of floats depend on it; how they wait for each
  other, which changes no number, depends on whether the machine is busy (docs/training-speed.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import sys
import termios
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import dagster as dg
import psutil
from pydantic import Field

from core.errors import RunError
from core.files import write_json
from resources.supervised import GRACE, Supervised

LAST_LINES = 20  # of the script's output, in the error message of a failure
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "DISABLE_TELEMETRY": "1"}
TOLERATED_LOAD = 0.4  # cores that may be busy with other work


class TrainingFailed(dg.Failure, RunError):
    """A script that failed, was stopped, or returned no result; the message ends with its last lines of output."""


def idle_cores(seconds: float = 0.5) -> float:
    """CPU cores that were idle during the last `seconds`; cores used by this process and its children count as idle.

    They count because these processes will be waiting while the training runs.
    """
    idle, ours = psutil.cpu_times().idle, own_cpu_seconds()
    time.sleep(seconds)
    return (psutil.cpu_times().idle - idle + own_cpu_seconds() - ours) / seconds


def own_cpu_seconds() -> float:
    """CPU seconds that this process and its children have used so far."""
    total = 0.0
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
            times = process.cpu_times()
            total += times.user + times.system
    return total


DagsterContext = dg.AssetExecutionContext | dg.OpExecutionContext


class TrainingLauncher(dg.ConfigurableResource[Any]):
    """Starts training scripts on this machine."""

    nproc: int = Field(default=1, ge=1, description="Processes of one training run (torchrun): one a GPU.")
    threads: int = Field(
        default=2,
        ge=1,
        description="CPU threads (OMP_NUM_THREADS) of each process, unless the script's own settings say 'threads'. "
        "A different number may change the last digits of a model trained on CPU.",
    )
    grace: float = Field(
        default=GRACE, ge=0, description="Seconds from SIGTERM to SIGKILL when a run is cancelled."
    )
    root: str = Field(description="The project's folder, where the script runs.")

    def run(
        self, context: DagsterContext | None, module: str, config: Mapping[str, Any], work: Path
    ) -> dict[str, Any]:
        """Run `python -m module --config work/config.json` to its end; return the script's result.

        `context` is None outside Dagster. The configuration is `config`, with "result" set to work/result.json if
        it has none. Raises TrainingFailed with the script's last lines. An interrupt is raised only when every
        process of the script has ended. In Dagster the asset must return or yield its own MaterializeResult
        (Dagster requires it where Pipes was used).
        """
        work = Path(work).resolve()
        work.mkdir(parents=True, exist_ok=True)
        config = {"result": str(work / "result.json"), **config}
        result_file = Path(self.root, config["result"])
        result_file.unlink(missing_ok=True)  # of an earlier attempt
        config_file = work / "config.json"
        write_json(config_file, config)
        command = self.command(module, config_file)
        env = self.environment(config)
        if context is None:
            self._run(command, env, module)
            messages: list[Any] = []
        else:
            messages = self._run_with_pipes(context, command, env, module)
        return _result(messages, result_file, module)

    def command(self, module: str, config_file: Path) -> list[str]:
        """The argument vector that runs the module: plain Python, or torchrun for several processes."""
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.nproc}"]
        return [
            sys.executable,
            *(several if self.nproc > 1 else []),
            "-m",
            module,
            "--config",
            str(config_file),
        ]

    def environment(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Our environment plus what the script needs; DS_ACCELERATOR is set only where there is no GPU."""
        threads = config.get("threads") or (config.get("params") or {}).get("threads") or self.threads
        env = {**os.environ, **QUIET, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
        env["TOKENIZERS_PARALLELISM"] = "false"
        # Threads that busy-wait are 1.6 times as fast as threads that sleep, but starve each other on a busy machine.
        if "OMP_WAIT_POLICY" not in env and threads > 1 and idle_cores() < threads - TOLERATED_LOAD:
            env["OMP_WAIT_POLICY"] = "PASSIVE"
        if not _has_gpu():
            env["DS_ACCELERATOR"] = "cpu"
        for name in [n for n in env if n.startswith("DAGSTER_PIPES_")]:
            del env[name]  # of an outer Pipes session
        return env

    def _run_with_pipes(
        self, context: DagsterContext, command: list[str], env: dict[str, str], module: str
    ) -> list[Any]:
        # The messages go through a file: it needs no port, and keeps them if we read slowly.
        with contextlib.ExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", dg.PreviewWarning
                )  # Dagster's own API, which it marks as a preview
                session = stack.enter_context(
                    dg.open_pipes_session(
                        context=context,
                        context_injector=dg.PipesTempFileContextInjector(),
                        message_reader=dg.PipesTempFileMessageReader(),
                    )
                )
            self._run(command, {**env, **session.get_bootstrap_env_vars()}, module)
        return list(session.get_custom_messages())

    def _run(self, command: list[str], env: dict[str, str], module: str) -> None:
        with _ForwardedStream(sys.stdout, 1) as out, _ForwardedStream(sys.stderr, 2) as err:
            last: deque[str] = deque(maxlen=LAST_LINES)
            process = Supervised(
                command, cwd=self.root, env=env, stdout=out.child_end, stderr=err.child_end, grace=self.grace
            )
            with process:
                out.forward(last)
                err.forward(last)
                code = process.wait()
        if code:
            raise _failure(module, command, code, list(last))


class _ForwardedStream:
    """One output stream of the script: forwarded as it comes, its last lines kept."""

    def __init__(self, stream: TextIO, number: int) -> None:
        self._to = number  # the descriptor, so that a redirection by Dagster or a test applies
        self._thread: threading.Thread | None = None
        if os.isatty(number):
            self._ours, self.child_end = pty.openpty()
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(number, termios.TIOCGWINSZ, b"\0" * 8)
                fcntl.ioctl(self.child_end, termios.TIOCSWINSZ, size)
            attributes = termios.tcgetattr(self.child_end)
            attributes[1] &= ~termios.OPOST  # the real terminal turns \n into \r\n, not this one
            termios.tcsetattr(self.child_end, termios.TCSANOW, attributes)
        else:
            self._ours, self.child_end = os.pipe()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # our earlier output comes first

    def __enter__(self) -> _ForwardedStream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            os.close(self.child_end)
        else:
            self._thread.join(10)
        os.close(self._ours)

    def forward(self, last: deque[str]) -> None:
        """Forward in a thread, until every process that holds the other end has ended."""
        os.close(self.child_end)
        self._thread = threading.Thread(
            target=self._read_until_closed, args=(last,), name="stemma-output", daemon=True
        )
        self._thread.start()

    def _read_until_closed(self, last: deque[str]) -> None:
        rest = b""
        for chunk in _chunks(self._ours):
            _write_all(self._to, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            last.extend(_visible(line) for line in lines if _visible(line))
            rest = rest[-65536:]
        if _visible(rest):
            last.append(_visible(rest))


def _chunks(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # a pseudo-terminal returns EIO at its end
            return
        if not chunk:
            return
        yield chunk


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all, or drop it on an error: if a closed terminal stopped the reading, the script would block."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _visible(line: bytes) -> str:
    """The visible text of a line that a progress bar redrew: what follows the last carriage return."""
    return line.decode("utf-8", "replace").rstrip().rpartition("\r")[2].rstrip()


def _failure(module: str, command: list[str], code: int, last: list[str]) -> TrainingFailed:
    """The error: how the script ended, its last lines, how to continue."""
    if code == -signal.SIGKILL:
        how = "was killed (SIGKILL): by a user, or by the kernel because memory ran out (see 'dmesg')"
    elif code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    elif code == 128 + signal.SIGTERM:
        how = "ended after a request to stop (SIGTERM)"
    else:
        how = f"failed with exit code {code}"
    output = "\n".join(last) or "(no output)"
    return TrainingFailed(
        f"{module} {how}. Its last lines are below. Fix the cause and materialize again: it resumes from its "
        f"last checkpoint. To run it alone: {' '.join(command[command.index('-m') - 1 :])}\n\n{output}",
        metadata={"exit_code": code, "last_lines": dg.MetadataValue.md(f"```\n{output}\n```")},
    )


def _result(messages: list[Any], result_file: Path, module: str) -> dict[str, Any]:
    for message in reversed(messages):
        if isinstance(message, dict) and "result" in message:
            return message["result"]
    try:
        return json.loads(result_file.read_text("utf-8"))
    except FileNotFoundError:
        raise TrainingFailed(
            f"{module} ended without error but reported no result, neither as a Pipes message nor in {result_file}. "
            "It must call RunLog.result(...) once, at its end."
        ) from None


def _has_gpu() -> bool:
    """Whether a CUDA or ROCm device may be used; looks at device files, so that torch is not imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
