"""GGUF, the file format of llama.cpp, read: transformers dequantises the file and writes it as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import DataError, MissingError
from model.hub.write import write_json, write_weights


def unpack(file: Path, folder: Path) -> None:
    """Write a .gguf file, dequantised to float32, as a Hugging Face folder.

    Raises MissingError without the extra `gguf`, DataError for a file that transformers would read wrongly.
    """
    try:
        import gguf  # noqa: F401 (transformers reads such a file with it)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingError(
            f"To read {file}, the package {error.name} is needed: pip install 'stemma[gguf]'"
        ) from error

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, **_settings_not_read(file)
    )
    folder.mkdir(parents=True, exist_ok=True)
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    weights = dict(model.state_dict())
    if settings.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    write_weights(weights, folder)
    write_json(folder / "config.json", settings)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _settings_not_read(file: Path) -> dict[str, Any]:
    """The size of the heads, which transformers' reader (5.23) ignores. Raises DataError for scaled positions."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    kind = reader.get_field("general.architecture").contents()
    scaling = reader.get_field(f"{kind}.rope.scaling.type")
    scaled = scaling is not None and scaling.contents() != "none"
    if scaled or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise DataError(
            f"{file}: its rotary positions are scaled, which transformers does not read from a .gguf file. Take the "
            "model's Hugging Face folder instead."
        )
    size = reader.get_field(f"{kind}.attention.key_length")
    return {} if size is None else {"head_dim": int(size.contents())}
