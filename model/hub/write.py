"""Writing the weight files and JSON files of a model folder, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files import atomic_path, write_atomically
from model.hub.weights import INDEX, WEIGHT_FILES

if TYPE_CHECKING:
    from torch import Tensor

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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers does: keys in the order given, indented by two."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
