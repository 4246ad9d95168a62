"""Fixtures of all tests: the real data beside the checkout, and copies of the project to work in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two workers on two cores must not spin for each other
# A shell makes what it starts in the background ignore interrupts; processes started by the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest file, so that the other worker takes the rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_chain.py")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real crawl, instruction and eval data beside the project; without it the test is skipped."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared real data is not on this machine")
    return folder


@dataclass(frozen=True)
class Project:
    """A copy of the project in a folder of its own, used as a user does: by its commands."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER", "DVC"))}
        return env | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}

    def start(self, *command: str, **options) -> subprocess.Popen:
        """Start a command in the project's folder, in a session of its own."""
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, text=True, start_new_session=True, **options
        )

    def run(self, *command: str, code: int | None = 0) -> subprocess.CompletedProcess:
        """Run a command in the project's folder and check its exit code."""
        done = subprocess.run(command, cwd=self.root, env=self.environment, text=True, capture_output=True)
        assert code is None or done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def stemma(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "stemma.py", *arguments, code=code)


def copy_project(to: Path, preset: str = "tiny") -> Project:
    """Copy the files of the project (not its data) to a git repository of their own, with the settings of a preset."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "provenance/", "dvc.lock")):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    project = Project(to)
    for command in (
        ("init", "-q"),
        ("add", "-A"),
        ("-c", "user.name=t", "-c", "user.email=t@t.example", "commit", "-qm", "start"),
    ):
        project.run("git", *command)
    from resources.workspace import Workspace

    Workspace(to).apply_preset(preset)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh copy of the project, nothing built yet."""
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The whole chain, built once at its smallest size. Tests that change it restore it."""
    project = copy_project(tmp_path_factory.mktemp("built") / "project")
    project.stemma("materialize")
    return project
