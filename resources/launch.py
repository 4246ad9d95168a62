"""Starts a training script as an external process, and brings back what it found.

The script (`python -m model.pretrain --config FILE.json`, under torchrun for several processes) knows nothing of
Dagster but `dagster-pipes`. Notable:
- it runs under `resources.supervisor`: when the step fails, is cancelled or killed, no process stays behind;
- its output goes where ours goes: to the terminal (through a pseudo-terminal, so that progress bars draw
  themselves there) or to Dagster's compute log; the last lines are kept for the sentence that tells of a failure;
- its result comes back as the Pipes message {"result": {...}}, or from the JSON file config["result"];
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
from typing import Any

import dagster as dg
import psutil
from pydantic import Field

from resources.supervisor import GRACE, Supervised

ROOT = Path(__file__).resolve().parent.parent
LAST_LINES = 20  # of the script's output, in the sentence that tells of its failure
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "DISABLE_TELEMETRY": "1"}
SPARE = 0.4  # of a core may be busy with something else


def idle_cores(seconds: float = 0.5) -> float:
    """How many CPU cores' worth of time nobody used just now but this process and its children, who will be waiting."""
    idle, ours = psutil.cpu_times().idle, own_cpu_seconds()
    time.sleep(seconds)
    return (psutil.cpu_times().idle - idle + own_cpu_seconds() - ours) / seconds


def own_cpu_seconds() -> float:
    """Processor time of this process and its children so far."""
    total = 0.0
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            times = process.cpu_times()
            total += times.user + times.system
    return total


class TrainingLauncher(dg.ConfigurableResource):
    """How training scripts are started on this machine."""

    nproc: int = Field(default=1, ge=1, description="Processes of one training run (torchrun): one a GPU.")
    threads: int = Field(
        default=2,
        ge=1,
        description="CPU threads (OMP_NUM_THREADS) of each process, unless the script's own settings say 'threads'. "
        "Another number may change the last digits of a model trained on CPU.",
    )
    grace: float = Field(
        default=GRACE, ge=0, description="Seconds from SIGTERM to SIGKILL when a run is cancelled."
    )
    root: str = Field(default=str(ROOT), description="The project's folder, where the script runs.")

    def run(self, context: Any, module: str, config: Mapping[str, Any], work: Path) -> dict[str, Any]:
        """Run `python -m module --config work/config.json` to its end; return the script's result.

        `context` is a Dagster asset or op context, or None outside Dagster. The configuration is `config`, with
        "result" set to work/result.json if it has none. Raises dagster.Failure with the script's last lines.
        Any interrupt leaves only when every process of the script is gone. In Dagster the asset must return or
        yield a MaterializeResult of its own (Dagster insists where Pipes was used).
        """
        work = Path(work).resolve()
        work.mkdir(parents=True, exist_ok=True)
        config = {"result": str(work / "result.json"), **config}
        result_file = Path(self.root, config["result"])
        result_file.unlink(missing_ok=True)  # of an earlier attempt
        config_file = work / "config.json"
        _write_json(config_file, config)
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
        """Our environment with what the script needs; DeepSpeed is told of the CPU only where there is no GPU."""
        threads = config.get("threads") or (config.get("params") or {}).get("threads") or self.threads
        env = {**os.environ, **QUIET, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
        env["TOKENIZERS_PARALLELISM"] = "false"
        # Threads that spin for each other are 1.6 times as fast as threads that sleep, and starve on a busy machine.
        if "OMP_WAIT_POLICY" not in env and threads > 1 and idle_cores() < threads - SPARE:
            env["OMP_WAIT_POLICY"] = "PASSIVE"
        if not _has_gpu():
            env["DS_ACCELERATOR"] = "cpu"
        for name in [n for n in env if n.startswith("DAGSTER_PIPES_")]:
            del env[name]  # of an outer session: its messages are not ours
        return env

    def _run_with_pipes(
        self, context: Any, command: list[str], env: dict[str, str], module: str
    ) -> list[Any]:
        # The messages are read from a file: it needs no port, and holds them if we are slow to read.
        with contextlib.ExitStack() as stack:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.PreviewWarning)  # Dagster's own, about its own call
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
        with _Passed(sys.stdout, 1) as out, _Passed(sys.stderr, 2) as err:
            last: deque[str] = deque(maxlen=LAST_LINES)
            process = Supervised(
                command, cwd=self.root, env=env, stdout=out.child_end, stderr=err.child_end, grace=self.grace
            )
            with process:
                out.pump(last)
                err.pump(last)
                code = process.wait()
        if code:
            raise _failure(module, command, code, list(last))


class _Passed:
    """One output stream of the script: passed on as it comes, its last lines remembered."""

    def __init__(self, stream: Any, number: int) -> None:
        self._to = number  # the descriptor, so that a redirection by Dagster or a test holds
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
            stream.flush()  # what we said before comes before

    def __enter__(self) -> _Passed:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is None:
            os.close(self.child_end)
        else:
            self._thread.join(10)
        os.close(self._ours)

    def pump(self, last: deque[str]) -> None:
        """Pass on in a thread, until every process that holds the other end is gone."""
        os.close(self.child_end)
        self._thread = threading.Thread(target=self._pump, args=(last,), name="stemma-output", daemon=True)
        self._thread.start()

    def _pump(self, last: deque[str]) -> None:
        rest = b""
        for chunk in _chunks(self._ours):
            _write_all(self._to, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            last.extend(_shown(line) for line in lines if _shown(line))
            rest = rest[-65536:]
        if _shown(rest):
            last.append(_shown(rest))


def _chunks(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # a pseudo-terminal says EIO at its end
            return
        if not chunk:
            return
        yield chunk


def _write_all(descriptor: int, data: bytes) -> None:
    """Write, or let it go: a closed terminal must not stop the reading, or the script would block."""
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _shown(line: bytes) -> str:
    """What is left to see of a line over which a progress bar was drawn again and again."""
    return line.decode("utf-8", "replace").rstrip().rpartition("\r")[2].rstrip()


def _failure(module: str, command: list[str], code: int, last: list[str]) -> dg.Failure:
    """The failure as sentences: what ended how, what to look at, how to go on."""
    if code == -signal.SIGKILL:
        how = "was killed (SIGKILL): by someone, or by the kernel because memory ran out ('dmesg' tells)"
    elif code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    elif code == 128 + signal.SIGTERM:
        how = "was asked to stop, and stopped"
    else:
        how = f"failed with exit code {code}"
    said = "\n".join(last) or "(nothing)"
    return dg.Failure(
        f"{module} {how}. Its last lines are below. Mend the cause and materialize again: it goes on from its "
        f"last checkpoint. To run it alone: {' '.join(command[command.index('-m') - 1 :])}\n\n{said}",
        metadata={"exit_code": code, "last_lines": dg.MetadataValue.md(f"```\n{said}\n```")},
    )


def _result(messages: list[Any], result_file: Path, module: str) -> dict[str, Any]:
    for message in reversed(messages):
        if isinstance(message, dict) and "result" in message:
            return message["result"]
    try:
        return json.loads(result_file.read_text("utf-8"))
    except FileNotFoundError:
        raise dg.Failure(
            f"{module} ended well but reported no result, neither as a Pipes message nor in {result_file}. "
            "It must call RunLog.result(...) once, at its end."
        ) from None


def _has_gpu() -> bool:
    """Whether a CUDA or ROCm device may be used; looks at devices, so that torch need not be imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)
