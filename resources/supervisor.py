"""Runs a command so that none of its processes outlives this one: no trainer, no child of a wrapper, no orphan.

A small process (this file, run as a script) supervises the command:
- it leads its own session, so that Ctrl-C in a terminal reaches only us and we decide what happens;
- it detects our death in three ways (PR_SET_PDEATHSIG, the end of a socket, its parent's id), so a SIGKILL
  of the Dagster step stops the training too;
- it is a child subreaper: descendants that lose their parent, or start their own session, become its
  children instead of init's, so it always sees the whole tree;
- to stop, it sends SIGTERM to all descendants, waits the grace period, then sends SIGKILL until none is left;
- when the command itself ends or is killed, the processes that it leaves behind are stopped in the same way.
If the supervisor itself is killed, its command dies by PDEATHSIG and we kill the rest, found by a marker that
every descendant carries in its environment. All of this needs Linux; elsewhere (macOS) the socket, the
parent's id and the process tree remain. Sources: prctl(2), and issues of `PipesSubprocessClient`, which sends
one SIGINT and never kills.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import psutil

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h, since Linux 3.4
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
        argv = [sys.executable, "-P", str(Path(__file__).resolve())]
        argv += [str(theirs.fileno()), str(os.getpid()), str(grace), "--", *self.command]
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
        _signal_all(found, signal.SIGKILL)
        psutil.wait_procs(found, timeout=0.2)


def _carries(process: psutil.Process, wanted: str) -> bool:
    import psutil

    try:
        key, value = wanted.split("=", 1)
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(key) == value
    except (psutil.Error, OSError):
        return False  # it ended meanwhile, or is another user's


def _signal_all(processes: list[psutil.Process], number: int) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)  # psutil refuses if the id now belongs to another process


# ---- below: the supervisor process itself ----


def _prctl(option: int, value: int) -> None:
    """Call prctl(2) where there is one."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class _Supervisor:
    """Runs one command; stops its tree when asked to, or when the process that started us (`parent`) ends."""

    def __init__(self, channel: socket.socket, parent: int, grace: float) -> None:
        import psutil  # noqa: F401 (now, not when processes have to be stopped, perhaps without a free descriptor)

        self.channel: socket.socket | None = channel
        self.parent, self.grace = parent, grace
        self.stop_requests = 0
        self.child: subprocess.Popen[bytes] | None = None
        self.status: int | None = None  # return code of the command once it ended
        self.wake, wake_in = os.pipe()
        for end in (self.wake, wake_in):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before PR_SET_PDEATHSIG was in force
            self.stop_requests = 1

    def _on_signal(self, *_: object) -> None:
        self.stop_requests += 1

    def send(self, report: _Report) -> None:
        if self.channel is not None:
            with contextlib.suppress(OSError):  # the other end is closed
                self.channel.send(json.dumps(report).encode() + b"\n")

    def run(self, command: list[str]) -> int:
        """Run the command and stop what is left of its tree; returns our own exit code."""
        if not self.stop_requests:
            try:
                self.child = _spawn(command)
            except OSError as error:
                print(f"{command[0]}: cannot be started ({error.strerror}).", file=sys.stderr, flush=True)
                self.send({"returncode": 127})
                return 127
            self.send({"pid": self.child.pid})
            while self.status is None and not self.stop_requests:
                self._wait_for_event(1.0)
        self._stop_all()
        self.send({"returncode": -signal.SIGTERM if self.status is None else self.status})
        return 0

    def _wait_for_event(self, seconds: float) -> None:
        """Wait for a signal, a stop request or the end of our parent, at most `seconds`; then reap children."""
        watched = [end for end in (self.wake, self.channel) if end is not None]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self.wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake, 4096)
        if self.channel is not None and self.channel in ready:
            self.stop_requests += 1
            try:
                received = self.channel.recv(1)
            except OSError:
                received = b""
            if not received:  # our parent ended or closed its end
                self.channel = None
        if os.getppid() != self.parent and not self.stop_requests:
            self.stop_requests = 1
        for pid, status in _reap():
            if self.child is not None and pid == self.child.pid:
                self.status = os.waitstatus_to_exitcode(status)

    def _stop_all(self) -> None:
        """SIGTERM once to each descendant, also to those that appear meanwhile; after the grace period SIGKILL."""
        signalled: set[psutil.Process] = set()
        deadline = time.monotonic() + self.grace
        requests = self.stop_requests
        while time.monotonic() < deadline and self.stop_requests <= max(requests, 1):
            left = _descendants()
            if not left:
                return
            new = [process for process in left if process not in signalled]
            _signal_all(new, signal.SIGTERM)
            _signal_all(new, signal.SIGCONT)  # a stopped process receives SIGTERM only when it continues
            signalled.update(new)
            self._wait_for_event(0.05)
        deadline = time.monotonic() + KILL_LIMIT
        while (left := _descendants()) and time.monotonic() < deadline:
            _signal_all(left, signal.SIGKILL)
            self._wait_for_event(0.02)


def _descendants() -> list[psutil.Process]:
    """All live descendants; zombies are reaped elsewhere."""
    import psutil

    live = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                live.append(process)
    return live


def _reap() -> Iterator[tuple[int, int]]:
    """(pid, wait status) of every child that has ended, adopted ones included."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    """Start the command as a child that dies with us, with default signal handlers."""
    supervisor = os.getpid()

    def prepare() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)

    return subprocess.Popen(command, preexec_fn=prepare)


def main(argv: list[str]) -> int:
    """`supervisor.py SOCKET_FD PARENT_PID GRACE_SECONDS -- COMMAND…`"""
    descriptor, parent, grace, dashes, *command = argv
    if dashes != "--" or not command:
        print(main.__doc__, file=sys.stderr)
        return 2
    return _Supervisor(socket.socket(fileno=int(descriptor)), int(parent), float(grace)).run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
