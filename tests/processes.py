"""Whether a process that a test started has ended."""

import psutil


def alive(pid: int) -> bool:
    """Whether a process still runs; an orphan that init has yet to reap does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
