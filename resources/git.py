"""The commit that is checked out in the project's folder."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GitState:
    """The commit that is checked out in the project's folder, and what was changed since. No repository: commit ''."""

    commit: str
    dirty: tuple[str, ...]  # changed or new files, without dvc.lock and provenance/
    remote: str = ""  # URL of `origin`, without user name or password

    @property
    def name(self) -> str:
        """The commit's hash, with '-dirty' behind it if files were changed since; '' without a repository."""
        return self.commit + ("-dirty" if self.dirty else "")


def git_state(root: Path) -> GitState:
    """The commit, the files changed since (dvc.lock and provenance/ do not count), and the origin."""
    commit = _git(root, "rev-parse", "HEAD").strip()
    lines = _git(root, "status", "--porcelain", "--no-renames").splitlines() if commit else []
    paths = [line[3:].strip('"') for line in lines]
    dirty = tuple(p for p in paths if p != "dvc.lock" and not p.startswith("provenance/"))
    remote = _git(root, "remote", "get-url", "origin").strip() if commit else ""
    return GitState(commit, dirty, re.sub(r"(?<=://)[^/@]*@", "", remote))


def _git(root: Path, *args: str) -> str:
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout if done.returncode == 0 else ""
