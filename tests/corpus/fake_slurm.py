"""A fake Slurm on one machine: sbatch, squeue and scancel as Stemma calls them; job arrays run as processes.

Like the real one: sbatch answers at once and the elements run later, at most as many at a time as the array allows
and the "node" has cores; each is a session of its own with Slurm's variables; squeue no longer lists a job that ended;
scancel sends SIGTERM, then SIGKILL. Jobs live in the folder FAKE_SLURM.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

CORES = 2
COMMANDS = ("sbatch", "squeue", "scancel")


def install(folder: Path) -> Path:
    """Put the three commands into a folder for the PATH."""
    folder.mkdir(parents=True)
    for name in COMMANDS:
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def home() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def write(path: Path, text: str) -> None:
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def sbatch(options: dict[str, str]) -> None:
    home().mkdir(parents=True, exist_ok=True)
    job = next(n for n in range(1, 10_000) if not _taken(home() / f"{n}"))
    bounds = re.fullmatch(r"0-(\d+)(?:%(\d+))?", options["array"])
    about = {
        "name": options["job-name"],
        "count": int(bounds[1]) + 1,
        "at_once": min(int(bounds[2] or CORES), CORES),
        "script": options["wrap"],
        "output": options["output"],
        "folder": options["chdir"],
    }
    write(home() / str(job) / "job.json", json.dumps(about))
    command = [sys.executable, __file__, "controller", str(job)]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen(command, start_new_session=True, **quiet)
    print(job)


def _taken(folder: Path) -> bool:
    try:
        folder.mkdir()
        return False
    except FileExistsError:
        return True


def jobs(name: str) -> list[tuple[str, dict]]:
    found = [(file.parent.name, json.loads(file.read_text())) for file in home().glob("*/job.json")]
    return [(job, about) for job, about in found if about["name"] == name]


def squeue(options: dict[str, str]) -> None:
    assert options["format"] == "%F_%K" and "array" in options and "noheader" in options
    for job, about in jobs(options["name"]):
        for element in range(about["count"]):
            if not (home() / job / f"{element}.ended").exists():
                print(f"{job}_{element}")


def scancel(options: dict[str, str]) -> None:
    for job, _ in jobs(options["name"]):
        (home() / job / "cancel").touch()


def controller(job: str) -> None:
    """Run one array to its end."""
    folder = home() / job
    about = json.loads((folder / "job.json").read_text())
    waiting, running = list(range(about["count"])), {}
    while waiting or running:
        if (folder / "cancel").exists():
            for process in running.values():
                end(process)
            for element in [*waiting, *running]:
                (folder / f"{element}.ended").write_text("CANCELLED")
            return
        for element, process in list(running.items()):
            if process.poll() is not None:
                (folder / f"{element}.ended").write_text(str(process.returncode))
                del running[element]
        while waiting and len(running) < about["at_once"]:
            element = waiting.pop(0)
            running[element] = start(job, element, about)
        time.sleep(0.02)


def start(job: str, element: int, about: dict) -> subprocess.Popen:
    log = about["output"].replace("%A", job).replace("%a", str(element))
    slurm = {
        "SLURM_JOB_ID": f"{job}{element}",
        "SLURM_ARRAY_JOB_ID": job,
        "SLURM_ARRAY_TASK_ID": str(element),
    }
    with open(log, "a") as output:
        return subprocess.Popen(
            ["/bin/sh", "-c", about["script"]],
            env=os.environ | slurm,
            cwd=about["folder"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end(process: subprocess.Popen) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "controller":
        controller(*words)
    else:
        given = dict(word.removeprefix("--").partition("=")[::2] for word in words)
        {"sbatch": sbatch, "squeue": squeue, "scancel": scancel}[command](given)
