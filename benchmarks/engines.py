"""The overhead of each engine: processor seconds of a cleaning run beyond those of the units.

    python -m benchmarks.engines crawl/*.warc.gz            # local, and ray or slurm where installed
    python -m benchmarks.engines --engines local,slurm …

Processor seconds and not wall-clock time, so that other load changes little. They are read from /proc ten times a
second for every descendant of this process, and for the elements of the job array, which Slurm starts.
"""

import argparse
import hashlib
import importlib.util
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from corpus.clean import CleanConfig, clean_crawl
from corpus.engines.choose import ENGINES


class Meter(threading.Thread):
    """Adds up the processor time of the processes of a run, by their kind."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.stopped = str(folder), threading.Event()
        self.seconds: dict[int, tuple[str, float]] = {}

    def run(self) -> None:
        me = psutil.Process()
        while not self.stopped.wait(0.1):
            mine = [me, *me.children(recursive=True)]
            for element in psutil.process_iter(["cmdline"]):
                if self.folder in " ".join(element.info["cmdline"] or []) and element not in mine:
                    mine += [element, *element.children(recursive=True)]
            for process in mine:
                try:
                    used = process.cpu_times()
                    kind = self.kind(" ".join(process.cmdline()) or process.name())
                except psutil.Error:
                    continue
                self.seconds[process.pid] = (kind, used.user + used.system)

    def kind(self, command: str) -> str:
        """'unit' for a worker, 'engine' for everything else."""
        return "unit" if "corpus.engines.pool" in command else "engine"

    def stop(self) -> dict[str, float]:
        self.stopped.set()
        self.join()
        totals = {"unit": 0.0, "engine": 0.0}
        for kind, seconds in self.seconds.values():
            totals[kind] += seconds
        return totals


def content(folder: Path) -> str:
    """One hash of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def main() -> int:
    """Clean the files once on each engine and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    installed = {
        "local": True,
        "ray": importlib.util.find_spec("ray") is not None,
        "slurm": shutil.which("sbatch") is not None,
    }
    print("engine   units' CPU s   engine's CPU s   wall s   bytes")
    for engine in options.engines.split(","):
        if not installed[engine]:
            print(f"{engine:8} not installed")
            continue
        with tempfile.TemporaryDirectory(prefix="engines-") as folder:
            meter, started = Meter(Path(folder)), time.monotonic()
            before = sum(psutil.Process().cpu_times()[:2])
            meter.start()
            clean_crawl(
                [(path.name, path.resolve()) for path in options.files],
                Path(folder) / "out",
                Path(folder) / "work",
                CleanConfig(),
                workers=options.workers,
                engine=engine,
            )
            used, wall = meter.stop(), time.monotonic() - started
            engine_seconds = used["engine"] - before
            same = content(Path(folder) / "out")
            print(f"{engine:8} {used['unit']:12.1f} {engine_seconds:16.1f} {wall:8.0f}   {same}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
