"""Reading a model folder: names and shapes are checked first, and the model is held in memory once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from core.errors import DataError, MissingError
from model.hub.config_json import from_config_json
from model.hub.weights import stored_name, stored_weights, weight_files
from model.network.transformer import Transformer
from model.tokenizer import Tokenizer, load_tokenizer


def load_pretrained(
    folder: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Transformer, Tokenizer]:
    """Read a folder of a Qwen3 or Llama model, ours or another's -> (model in evaluation mode, tokenizer).

    Raises MissingError where a file is not there, DataError where the model is of another kind or its files do not
    fit each other.
    """
    folder = Path(folder)
    config = from_config_json(read_config(folder), folder / "config.json")
    tokenizer = load_tokenizer(folder)
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    files = weight_files(folder)
    _check_shapes(_shapes(files), model, folder)
    model.to_empty(device=device)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.make_rope_tables()
    _fill(model, files)
    return model.to(device).eval(), tokenizer


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json. Raises MissingError."""
    if not (folder / "config.json").is_file():
        raise MissingError(f"{folder}/config.json is missing, so this is no model folder.")
    return json.loads((folder / "config.json").read_text())


def _shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every stored weight, from the files' headers."""
    return {ours: tuple(file.get_slice(theirs).get_shape()) for file, theirs, ours in stored_weights(files)}


def _check_shapes(found: Mapping[str, tuple[int, ...]], model: Transformer, folder: Path) -> None:
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if model.config.tie_embeddings:  # the head is the embedding, whether or not it is stored
        expected.pop("lm_head.weight", None)
        found = {name: shape for name, shape in found.items() if name != "lm_head.weight"}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{folder}: {len(wrong)} tensors do not fit config.json; the first is {stored_name(name)}, where "
            f"{expected.get(name, 'nothing')} is expected and {found.get(name, 'nothing')} found. The folder is mixed "
            "up or cut short: export or download it again."
        )


@torch.no_grad()
def _fill(model: Transformer, files: Sequence[Path]) -> None:
    """Copy the stored weights into the model's memory, one at a time, to its type and device."""
    weights = model.state_dict()
    for file, theirs, ours in stored_weights(files):
        if not (ours == "lm_head.weight" and model.config.tie_embeddings):
            weights[ours].copy_(file.get_tensor(theirs))
