"""Runs a command under a supervisor, so that none of its processes outlives this one.

No trainer, no child of a wrapper and no orphan is left, however the command, its supervisor or this process ends: how,
see `resources.supervisor`. If the supervisor itself is killed, its command dies with it, and we kill the rest, found by
a marker that every descendant carries in its environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import psutil

SUPERVISOR = Path(__file__).resolve().with_name("supervisor.py")
MARKER = "STEMMA_SUPERVISED"  # environment variable that marks all processes of one command
GRACE = 10.0  # seconds between SIGTERM and SIGKILL: enough for a trainer to finish its step
KILL_LIMIT = 30.0  # seconds to repeat SIGKILL; only a process stuck in the kernel outlasts them


class _Report(TypedDict, total=False):
    """What the supervisor sends to us, one JSON object a line."""

    pid: int  # of the command
    returncode: int  # of the command; -n when signal n ended it


class Supervised:
    """A command running under a supervisor, with the few methods of `subprocess.Popen` that are needed.

    Use it as a context manager: leaving the block, by whatever exception, stops the whole tree first.
    The thread that creates it must outlive it: for PR_SET_PDEATHSIG the parent is the thread, not the process.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        grace: float = GRACE,
    ) -> None:
        """Start `command` in `cwd` with `env` (None: ours); `grace` is seconds from SIGTERM to SIGKILL."""
        self.command = list(command)
        self.marker = uuid.uuid4().hex
        self.returncode: int | None = None  # of the command; -n when signal n ended it
        self._grace = grace
        ours, theirs = socket.socketpair()
        argv = [sys.executable, "-P", str(SUPERVISOR)]
        argv += [str(theirs.fileno()), str(os.getpid()), str(grace), str(KILL_LIMIT), "--", *self.command]
        try:
            self._supervisor = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**(os.environ if env is None else env), MARKER: self.marker},
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket = ours
        self._received = b""
        self._pid: int | None = None

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def supervisor_pid(self) -> int:
        return self._supervisor.pid

    @property
    def pid(self) -> int | None:
        """Process id of the command itself, None while it has not started (waits up to 10 s for it)."""
        deadline = time.monotonic() + 10
        while self._pid is None and time.monotonic() < deadline and self._receive(0.1):
            pass
        return self._pid

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command and all its descendants have ended; returns the command's return code.

        127 means that it could not be started (the reason is on its stderr). Raises subprocess.TimeoutExpired
        after `timeout` seconds.
        """
        if self.returncode is None:
            try:
                code = self._supervisor.wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise subprocess.TimeoutExpired(self.command, error.timeout) from None
            while self._receive(0):
                pass
            self._socket.close()
            report = self._report()
            if "returncode" not in report:  # the supervisor was killed or crashed
                _kill_marked(self.marker)
            self.returncode = report.get("returncode", code if code else -signal.SIGKILL)
        return self.returncode

    def poll(self) -> int | None:
        """The command's return code if it and its whole tree have ended, else None. Does not wait."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def stop(self) -> int:
        """SIGTERM to the whole tree, the grace period, SIGKILL to the rest. Returns when no process is left.

        An interrupt meanwhile (a second Ctrl-C) ends the grace period at once and is raised when the tree has ended.
        """
        if self.returncode is None:
            self._request_stop()
            try:
                return self.wait(self._grace + KILL_LIMIT + 5)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                return self.wait()
            except BaseException:
                self._request_stop()  # at a second request, the supervisor kills at once
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.wait(KILL_LIMIT)
                raise
        return self.returncode

    def _request_stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(b"s")

    def _receive(self, timeout: float) -> bool:
        """Read what the supervisor sends within `timeout` seconds; False if it ended or sent nothing."""
        if self._socket.fileno() < 0 or not select.select([self._socket], [], [], timeout)[0]:
            return timeout > 0 and self._supervisor.poll() is None
        try:
            received = self._socket.recv(65536)
        except ConnectionError:
            return False
        self._received += received
        self._pid = self._report().get("pid")
        return bool(received)

    def _report(self) -> _Report:
        report: _Report = {}
        for line in self._received.split(b"\n")[:-1]:
            report |= json.loads(line)
        return report


def _kill_marked(marker: str) -> None:
    """SIGKILL every process that carries our marker in its environment, until none is left."""
    import psutil

    wanted = f"{MARKER}={marker}"
    deadline = time.monotonic() + KILL_LIMIT
    while time.monotonic() < deadline:
        found = [p for p in psutil.process_iter() if p.pid != os.getpid() and _carries(p, wanted)]
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil refuses if the id now belongs to another process
        psutil.wait_procs(found, timeout=0.2)


def _carries(process: psutil.Process, wanted: str) -> bool:
    import psutil

    try:
        key, value = wanted.split("=", 1)
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(key) == value
    except (psutil.Error, OSError):
        return False  # it ended meanwhile, or is another user's
