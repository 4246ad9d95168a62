"""The weights of a model folder: safetensors files, their index, and the names in them. And its JSON files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import MissingError
from core.files import atomic_path, write_atomically

if TYPE_CHECKING:
    from safetensors import safe_open
    from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
MAX_SHARD_SIZE = "50GB"  # transformers 5's: one file for all but the largest


def write_weights(
    weights: Mapping[str, Tensor], out: Path, max_shard_size: int | str = MAX_SHARD_SIZE
) -> None:
    """Write one file, or several and their index. Files of an earlier, different split are removed: they would be
    read in place of the new ones.

    `weights`: by their name in the files. Each file is written whole or not at all. Raises ValueError for a size that
    cannot be read, OSError.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(dict(weights), max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        part = {name: weights[name].cpu().contiguous() for name in names}  # from a GPU, one file at a time
        with atomic_path(out / file) as temporary:
            save_file(part, temporary, metadata={"format": "pt"})
    written = set(split.filename_to_tensors)
    if split.is_sharded:
        write_json(out / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
        written.add(INDEX)
    for path in out.iterdir():
        if WEIGHT_FILES.fullmatch(path.name) and path.name not in written:
            path.unlink()


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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers does: keys in the order given, indented by two."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
