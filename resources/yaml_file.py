"""YAML as DVC reads it: version 1.2, so that `1e-3` is a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import WorkspaceError


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain values. Raises FileNotFoundError, and WorkspaceError for what is not YAML."""
    content = path.read_bytes()
    try:
        found = parse_yaml(content.decode("utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"expected names with values, not {found!r}")
        return found
    except Exception as error:
        raise WorkspaceError(
            f"{path.name} is not valid YAML: {error}. Correct that place and run again."
        ) from error


def parse_yaml(text: str) -> dict[str, Any]:
    """A YAML text as plain values."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(text) or {}
