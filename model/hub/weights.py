"""The weights in a model folder: the names of its safetensors files and of what is in them, and reading them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import MissingError

if TYPE_CHECKING:
    from safetensors import safe_open

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, in the order of their names. Raises MissingError where one is not there."""
    index, names = folder / INDEX, [WEIGHTS]
    if index.is_file() and not (folder / WEIGHTS).is_file():  # with both, transformers reads the one file
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            raise MissingError(
                f"{folder / name} is missing. Stemma reads safetensors only: a folder with pytorch_model.bin must be "
                "converted first."
            )
    return [folder / name for name in names]


def stored_weights(files: Sequence[Path]) -> Iterator[tuple[safe_open, str, str]]:
    """(open file, its name there, our name) of every weight; old checkpoints also store rotary frequencies."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not name.endswith("rotary_emb.inv_freq"):
                    yield file, name, name.removeprefix("model.")


def stored_name(name: str) -> str:
    """The name in the files of a parameter of ours."""
    return name if name.startswith("lm_head.") else f"model.{name}"
