"""YAML as DVC reads it: version 1.2, so that `1e-3` is a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import WorkspaceError


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as plain values. Raises FileNotFoundError, and WorkspaceError for what is not YAML."""
    text = path.read_text(encoding="utf-8")
    try:
        return parse_yaml(text)
    except Exception as error:
        raise WorkspaceError(
            f"{path.name} is not valid YAML: {error}. Correct that place and run again."
        ) from error


def parse_yaml(text: str) -> dict[str, Any]:
    """A YAML text as plain values."""
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(text) or {}
