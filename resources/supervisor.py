"""The process between `resources.supervised` and the command that it runs: a script that imports nothing of ours.

- It leads its own session, so that Ctrl-C in a terminal reaches only its parent, which decides what happens;
- it detects its parent's death in three ways (PR_SET_PDEATHSIG, the end of a socket, its parent's id), so a SIGKILL
  of a Dagster step stops the training too;
- it is a child subreaper: descendants that lose their parent, or start their own session, become its
  children instead of init's, so it always sees the whole tree;
- to stop, it sends SIGTERM to all descendants, waits the grace period, then sends SIGKILL until none is left;
- when the command itself ends or is killed, the processes that it leaves behind are stopped in the same way;
- when the supervisor is killed, the command dies by PDEATHSIG.
All of this needs Linux; elsewhere (macOS) the socket, the parent's id and the process tree remain. Sources: prctl(2),
and issues of `PipesSubprocessClient`, which sends one SIGINT and never kills.
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
from collections.abc import Iterator

import psutil

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h, since Linux 3.4


def _prctl(option: int, value: int) -> None:
    """Call prctl(2) where there is one."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class _Supervisor:
    """Runs one command; stops its tree when asked to, or when the process that started us (`parent`) ends."""

    def __init__(self, channel: socket.socket, parent: int, grace: float, kill_limit: float) -> None:
        self.channel: socket.socket | None = channel
        self.parent, self.grace, self.kill_limit = parent, grace, kill_limit
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

    def send(self, report: dict[str, int]) -> None:
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
        deadline = time.monotonic() + self.kill_limit
        while (left := _descendants()) and time.monotonic() < deadline:
            _signal_all(left, signal.SIGKILL)
            self._wait_for_event(0.02)


def _signal_all(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)  # psutil refuses if the id now belongs to another process


def _descendants() -> list[psutil.Process]:
    """All live descendants; zombies are reaped elsewhere."""
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
    """`supervisor.py SOCKET_FD PARENT_PID GRACE_SECONDS KILL_SECONDS -- COMMAND…`"""
    descriptor, parent, grace, kill_limit, dashes, *command = argv
    if dashes != "--" or not command:
        print(main.__doc__, file=sys.stderr)
        return 2
    channel = socket.socket(fileno=int(descriptor))
    return _Supervisor(channel, int(parent), float(grace), float(kill_limit)).run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
