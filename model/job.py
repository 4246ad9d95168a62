"""One run of a script: its configuration file in, its output folder and an exit code out.

A script of this package is started as `python -m model.NAME --config FILE.json` (or under torchrun), where FILE holds
{"params": {…}, "inputs": {…}, "out": DIR, "work": DIR, "metrics": FILE, "result": FILE, "seed": 0}; all but `out` are
optional. The output is built in OUT.partial and becomes OUT by one rename when it is complete. What the run reports
meanwhile goes through its log (run_log.py).
"""

from __future__ import annotations

import argparse
import errno
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, StemmaError
from core.files import replace_folder
from model.run_log import RunLog
from model.training.stop import Stopped

KEYS = ("out", "params", "inputs", "work", "metrics", "result", "seed")  # of the configuration file


@dataclass
class Job:
    """One run of a script: what the configuration file says, and the log to report to."""

    name: str
    params: dict[str, Any]
    inputs: dict[str, Any]
    out: Path
    work: Path
    log: RunLog
    seed: int = 0

    @property
    def partial(self) -> Path:
        """Where the output is built until `publish` renames it."""
        return self.out.with_name(self.out.name + ".partial")

    def fresh_partial(self) -> Path:
        """The empty folder OUT.partial; what an earlier, killed run left there is removed."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def publish(self) -> None:
        """Rename OUT.partial to OUT. An OUT that is already there is replaced."""
        replace_folder(self.partial, self.out)

    def input(self, name: str) -> Path:
        """The input of that name. Raises ConfigError where it is not configured, or does not exist."""
        paths = self.input_list(name)
        if len(paths) != 1:
            raise ConfigError(f"{self.name}: the input {name} is {len(paths)} folders; only one can be used.")
        return paths[0]

    def input_list(self, name: str) -> list[Path]:
        """The inputs of that name, one or several. Raises ConfigError as `input` does."""
        if name not in self.inputs:
            raise ConfigError(
                f'{self.name}: the configuration names no input "{name}". Add it under "inputs"; '
                f"there now: {', '.join(sorted(self.inputs)) or 'nothing'}."
            )
        value = self.inputs[name]
        paths = [Path(v) for v in ([value] if isinstance(value, str) else value)]
        for path in paths:
            if not path.exists():
                raise ConfigError(f"{self.name}: {path} (input {name}) does not exist. Build it first.")
        return paths


def read_job(name: str, argv: list[str] | None = None) -> Job:
    """The job that the command line asks for: `python -m model.NAME --config FILE.json`.

    Raises ConfigError for a file that cannot be read, lacks `out`, or has keys that are not in KEYS.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}")
    parser.add_argument("--config", required=True, type=Path, help="JSON: params, inputs, out, work, metrics")
    path = parser.parse_args(argv).config
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a JSON configuration ({error}).") from error
    unknown = set(config) - set(KEYS)
    if unknown or "out" not in config:
        raise ConfigError(
            f"{path}: needs out, may have params, inputs, work, metrics, result, seed"
            + (f"; it does not know {', '.join(sorted(unknown))}." if unknown else ".")
        )
    out = Path(config["out"])
    metrics, result = config.get("metrics"), config.get("result")
    return Job(
        name=name,
        params=config.get("params") or {},
        inputs=config.get("inputs") or {},
        out=out,
        work=Path(config.get("work") or out.with_name(out.name + ".work")),
        log=RunLog(Path(metrics) if metrics else None, Path(result) if result else None),
        seed=config.get("seed", 0),
    )


def run_main(name: str, body: Callable[[Job], None], argv: list[str] | None = None) -> int:
    """Run body(job) for the job on the command line. Returns the process's exit code.

    0: success. 1: an error that the user can fix, printed as one sentence. 143: the run was asked to stop (SIGTERM,
    SIGINT) and has saved its state. Any other error is a bug and is raised.
    """
    try:
        job = read_job(name, argv)
        with job.log:
            body(job)
    except Stopped as stop:
        print(stop, file=sys.stderr, flush=True)
        return 143
    except StemmaError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        print(f"{name}: {explain(error)}", file=sys.stderr, flush=True)
        return 1
    return 0


def explain(error: OSError) -> str:
    """An operating system's error as a sentence that says how to fix it."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"{what}. Free some disk space and run again; it continues from the last checkpoint."
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{what}. Make the folder writable, or choose another one."
    return f"{what}."
