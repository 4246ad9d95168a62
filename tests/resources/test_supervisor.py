"""No process that we start outlives us, however it, its wrapper, its supervisor or we ourselves end."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from processes import alive

from resources.supervised import Supervised

# A trainer that is hard to kill: it ignores SIGTERM and SIGINT, has a child in its own session, and an orphan
# whose parent has already ended. Each writes its process id into the folder given to it.
STUBBORN = textwrap.dedent("""
    import os, pathlib, signal, subprocess, sys, time
    folder = pathlib.Path(sys.argv[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    def live(name):
        (folder / (name + ".tmp")).write_text(str(os.getpid()))
        (folder / (name + ".tmp")).rename(folder / name)
        while True:
            time.sleep(0.05)
    if os.fork() == 0:
        os.setsid()
        live("own_session")
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            live("orphan")
        os._exit(0)
    live("trainer")
""")
NAMES = ("trainer", "own_session", "orphan")


def wait_for(what, seconds: float = 30.0):
    """Wait until `what()` is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.02)
    return found


def family(folder: Path) -> dict[str, int]:
    wait_for(lambda: all((folder / name).exists() for name in NAMES))
    return {name: int((folder / name).read_text()) for name in NAMES}


def stubborn(folder: Path) -> list[str]:
    script = folder / "stubborn.py"
    script.write_text(STUBBORN)
    return [sys.executable, str(script), str(folder)]


def assert_gone(pids: dict[str, int]) -> None:
    left = {name: pid for name, pid in pids.items() if alive(pid)}
    for pid in left.values():
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize("code", [0, 3])
def test_the_return_code_is_the_commands(code):
    with Supervised([sys.executable, "-c", f"raise SystemExit({code})"]) as running:
        assert running.wait(30) == code


def test_a_signal_shows_as_a_negative_return_code():
    with Supervised([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]) as running:
        assert running.wait(30) == -11


def test_a_command_that_does_not_exist_is_reported(capfd):
    with Supervised(["no-such-command"]) as running:
        assert running.wait(30) == 127
    assert "no-such-command: cannot be started" in capfd.readouterr().err


def test_stop_removes_a_tree_that_ignores_sigterm(tmp_path):
    running = Supervised(stubborn(tmp_path), grace=0.3)
    pids = family(tmp_path)
    assert pids["trainer"] == running.pid
    running.stop()
    assert_gone(pids)
    assert running.returncode == -signal.SIGKILL


def test_a_trainer_that_handles_sigterm_has_the_grace_period_to_end_cleanly(tmp_path):
    script = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(0)))\n"
        "pathlib.Path('ready').touch(); time.sleep(60)"
    )
    with Supervised([sys.executable, "-c", script], cwd=tmp_path) as running:
        wait_for((tmp_path / "ready").exists)
        assert running.stop() == 0
    assert (tmp_path / "saved").exists()


def test_a_killed_trainer_leaves_no_children(tmp_path):
    with Supervised(stubborn(tmp_path), grace=0.3) as running:
        pids = family(tmp_path)
        os.kill(pids["trainer"], signal.SIGKILL)
        assert running.wait(30) == -signal.SIGKILL
    assert_gone(pids)


def test_a_trainer_that_ends_leaves_no_children(tmp_path):
    (tmp_path / "end.py").write_text(
        STUBBORN.replace(
            'live("trainer")',
            '(folder / "trainer").write_text(str(os.getpid()))\n'
            'while not ((folder / "orphan").exists() and (folder / "own_session").exists()):\n'
            "    time.sleep(0.02)",
        )
    )
    with Supervised([sys.executable, str(tmp_path / "end.py"), str(tmp_path)], grace=0.3) as running:
        assert running.wait(30) == 0
    assert_gone(family(tmp_path))


def test_a_shell_wrapper_does_not_shield_the_trainer(tmp_path):
    wrapped = ["bash", "-c", f"{' '.join(stubborn(tmp_path))}; echo done"]
    with Supervised(wrapped, grace=0.3) as running:
        pids = family(tmp_path)
        assert running.pid != pids["trainer"]
        running.stop()
    assert_gone(pids)


def test_a_killed_supervisor_takes_the_tree_with_it(tmp_path):
    with Supervised(stubborn(tmp_path), grace=0.3) as running:
        pids = family(tmp_path)
        os.kill(running.supervisor_pid, signal.SIGKILL)
        assert running.wait(30) == -signal.SIGKILL
        assert_gone(pids)


def test_an_exception_leaves_the_block_only_when_the_tree_has_ended(tmp_path):
    with pytest.raises(RuntimeError), Supervised(stubborn(tmp_path), grace=0.3):
        pids = family(tmp_path)
        raise RuntimeError("the step failed")
    assert_gone(pids)


def test_a_stopped_process_is_removed_too(tmp_path):
    with Supervised([sys.executable, "-c", "import time; time.sleep(60)"], grace=5) as running:
        pid = running.pid
        os.kill(pid, signal.SIGSTOP)
        running.stop()
    assert not alive(pid)


STEP = textwrap.dedent("""
    import sys
    from resources.supervised import Supervised
    with Supervised([sys.executable, sys.argv[1] + "/stubborn.py", sys.argv[1]], grace=0.3) as running:
        running.wait()
""")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_end_of_the_step_ends_the_training(tmp_path, root, number):
    stubborn(tmp_path)
    step = subprocess.Popen([sys.executable, "-c", STEP, str(tmp_path)], cwd=root, stderr=subprocess.DEVNULL)
    pids = family(tmp_path)
    step.send_signal(number)
    step.wait(30)
    wait_for(lambda: not any(alive(pid) for pid in pids.values()))
    assert_gone(pids)


def test_a_second_interrupt_ends_the_grace_period(tmp_path, root):
    stubborn(tmp_path)
    code = STEP.replace("grace=0.3", "grace=600")
    step = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root, stderr=subprocess.DEVNULL)
    pids = family(tmp_path)
    step.send_signal(signal.SIGINT)
    time.sleep(1)
    assert alive(pids["trainer"])  # it is within the grace period
    step.send_signal(signal.SIGINT)
    step.wait(60)
    assert_gone(pids)
