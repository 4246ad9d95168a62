"""A file lock has one holder among threads and processes, and is free again however its holder ends."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from resources.file_lock import FileLock

HOLD = """
import sys, time
from pathlib import Path
from resources.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_two_uses_in_one_process_exclude_each_other_and_any_thread_may_release(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire() and not second.acquire()
    assert f"pid {os.getpid()}" in second.holder
    second.release()  # it does not hold the lock
    assert not second.acquire()
    threading.Timer(0.05, first.release).start()
    assert second.acquire(wait=30)
    second.release()


def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path, root):
    argv = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        lock = FileLock(tmp_path / "lock")
        assert not lock.acquire()
        assert lock.holder.startswith(f"process {holder.pid} (since ")
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        with lock:
            assert not FileLock(tmp_path / "lock").acquire()
    assert lock.acquire()
    lock.release()


def test_a_lock_whose_folder_is_missing_leaves_nothing_held(tmp_path):
    lock = FileLock(tmp_path / "folder" / "lock")
    with pytest.raises(FileNotFoundError):
        lock.acquire()
    (tmp_path / "folder").mkdir()
    assert lock.acquire()
    lock.release()
