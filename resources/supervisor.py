"""Runs a command so that nothing of it outlives us: no trainer, no wrapper's child, no orphaned grandchild.

A small process (this file, run as a script) stands between us and the command:
- it leads a session of its own, so that Ctrl-C in a terminal reaches us alone and we decide what happens;
- it learns of our death in three ways (PR_SET_PDEATHSIG, the end of a socket, its parent's id), so a SIGKILL
  of the Dagster step stops the training too;
- it is a "child subreaper": descendants that lose their parent, or open a session of their own, become its
  children instead of init's, so it always sees the whole tree;
- to stop, it sends SIGTERM to all descendants, waits the grace, then SIGKILL until none is left;
- when the command itself ends or is killed, what it left behind is stopped in the same way.
If the supervisor itself is killed, its command dies by PDEATHSIG and we sweep up the rest by a marker that
every descendant carries in its environment. Linux gives all of this; elsewhere (macOS) the socket, the
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

import psutil

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h, since Linux 3.4
MARKER = "STEMMA_SUPERVISED"  # environment variable by which a family is known
GRACE = 10.0  # seconds between SIGTERM and SIGKILL: enough for a trainer to leave its step
KILL_LIMIT = 30.0  # seconds to insist with SIGKILL; only a process stuck in the kernel outlasts them


class Supervised:
    """A command running under a supervisor, with the few methods of `subprocess.Popen` that are needed.

    Use it as a context manager: leaving the block, by whatever exception, stops the whole tree first.
    The thread that makes it must outlive it: PR_SET_PDEATHSIG counts the thread, not the process, as parent.
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
        self._heard = b""
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
        while self._pid is None and time.monotonic() < deadline and self._listen(0.1):
            pass
        return self._pid

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command and all its descendants are gone; give the command's return code.

        127 means that it could not be started (a sentence is on its stderr). Raises subprocess.TimeoutExpired
        after `timeout` seconds.
        """
        if self.returncode is None:
            try:
                code = self._supervisor.wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise subprocess.TimeoutExpired(self.command, error.timeout) from None
            while self._listen(0):
                pass
            self._socket.close()
            words = self._words()
            if "returncode" not in words:  # the supervisor was killed, or broke
                _kill_marked(self.marker)
            self.returncode = words.get("returncode", code if code else -signal.SIGKILL)
        return self.returncode

    def poll(self) -> int | None:
        """The command's return code if it has ended and its tree is gone, else None. Does not wait."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def stop(self) -> int:
        """SIGTERM to the whole tree, the grace, SIGKILL to the rest. Returns when nothing is left.

        An interrupt meanwhile (a second Ctrl-C) ends the grace at once and is raised when the tree is gone.
        """
        if self.returncode is None:
            self._ask_to_stop()
            try:
                return self.wait(self._grace + KILL_LIMIT + 5)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                return self.wait()
            except BaseException:
                self._ask_to_stop()  # asked twice, the supervisor kills without grace
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.wait(KILL_LIMIT)
                raise
        return self.returncode

    def _ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(b"s")

    def _listen(self, timeout: float) -> bool:
        """Take what the supervisor says within `timeout` seconds; False at its end or when it is silent."""
        if self._socket.fileno() < 0 or not select.select([self._socket], [], [], timeout)[0]:
            return timeout > 0 and self._supervisor.poll() is None
        try:
            said = self._socket.recv(65536)
        except ConnectionError:
            return False
        self._heard += said
        self._pid = self._words().get("pid")
        return bool(said)

    def _words(self) -> dict:
        words: dict = {}
        for line in self._heard.split(b"\n")[:-1]:
            words |= json.loads(line)
        return words


def _kill_marked(marker: str) -> None:
    """SIGKILL every process that carries our marker in its environment, until none is left."""
    wanted = f"{MARKER}={marker}"
    deadline = time.monotonic() + KILL_LIMIT
    while time.monotonic() < deadline:
        found = [p for p in psutil.process_iter() if p.pid != os.getpid() and _carries(p, wanted)]
        if not found:
            return
        _signal_all(found, signal.SIGKILL)
        psutil.wait_procs(found, timeout=0.2)


def _carries(process: psutil.Process, wanted: str) -> bool:
    try:
        key, value = wanted.split("=", 1)
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(key) == value
    except (psutil.Error, OSError):
        return False  # gone meanwhile, or another user's


def _signal_all(processes: list[psutil.Process], number: int) -> None:
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
    def __init__(self, line: socket.socket, parent: int, grace: float) -> None:
        self.line: socket.socket | None = line
        self.parent, self.grace = parent, grace
        self.asked = 0  # how many times we were asked to stop
        self.child: subprocess.Popen | None = None
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
        if os.getppid() != parent:  # it died before we could be told
            self.asked = 1

    def _on_signal(self, *_: object) -> None:
        self.asked += 1

    def say(self, **words: object) -> None:
        if self.line is not None:
            with contextlib.suppress(OSError):  # nobody is left to listen
                self.line.send(json.dumps(words).encode() + b"\n")

    def run(self, command: list[str]) -> int:
        if not self.asked:
            try:
                self.child = _spawn(command)
            except OSError as error:
                print(f"{command[0]}: cannot be started ({error.strerror}).", file=sys.stderr, flush=True)
                self.say(returncode=127)
                return 127
            self.say(pid=self.child.pid)
            while self.status is None and not self.asked:
                self._doze(1.0)
        self._stop_all()
        self.say(returncode=-signal.SIGTERM if self.status is None else self.status)
        return 0

    def _doze(self, seconds: float) -> None:
        """Wait for a signal, a word or the end of our parent; then see to the dead."""
        watched = [end for end in (self.wake, self.line) if end is not None]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self.wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake, 4096)
        if self.line is not None and self.line in ready:
            self.asked += 1
            try:
                word = self.line.recv(1)
            except OSError:
                word = b""
            if not word:  # our parent is gone, or gave us up
                self.line = None
        if os.getppid() != self.parent and not self.asked:
            self.asked = 1
        for pid, status in _reap():
            if self.child is not None and pid == self.child.pid:
                self.status = os.waitstatus_to_exitcode(status)

    def _stop_all(self) -> None:
        """SIGTERM once to each descendant, also to those that appear meanwhile; after the grace SIGKILL."""
        warned: set[psutil.Process] = set()
        deadline = time.monotonic() + self.grace
        at_first = self.asked
        while time.monotonic() < deadline and self.asked <= max(at_first, 1):
            left = _descendants()
            if not left:
                return
            new = [process for process in left if process not in warned]
            _signal_all(new, signal.SIGTERM)
            _signal_all(new, signal.SIGCONT)  # a stopped process hears SIGTERM only when it goes on
            warned.update(new)
            self._doze(0.05)
        deadline = time.monotonic() + KILL_LIMIT
        while (left := _descendants()) and time.monotonic() < deadline:
            _signal_all(left, signal.SIGKILL)
            self._doze(0.02)


def _descendants() -> list[psutil.Process]:
    """All living descendants, the dead of which are reaped elsewhere."""
    living = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def _reap() -> Iterator[tuple[int, int]]:
    """(pid, wait status) of every dead child, adopted ones too."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _spawn(command: list[str]) -> subprocess.Popen:
    """Start the command as a child that dies with us and takes signals as usual."""
    supervisor = os.getpid()

    def prepare() -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)

    return subprocess.Popen(command, preexec_fn=prepare)


def main(argv: list[str]) -> int:
    """`supervisor.py LINE_FD PARENT_PID GRACE_SECONDS -- COMMAND…`"""
    line, parent, grace, dashes, *command = argv
    if dashes != "--" or not command:
        print(main.__doc__, file=sys.stderr)
        return 2
    return _Supervisor(socket.socket(fileno=int(line)), int(parent), float(grace)).run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
