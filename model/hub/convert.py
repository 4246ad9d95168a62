"""Writing the model of any Hugging Face folder, or of a .gguf file, as a folder of ours.

    python -m model.hub IN OUT [--dtype bfloat16] [--max-shard-size 5GB]

IN is a folder of a Qwen3 or Llama model, or a .gguf file of one (dequantised).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from core.errors import ConfigError, StemmaError
from model.hub.gguf_import import unpack
from model.hub.load import load_pretrained, read_config
from model.hub.save import TOKENIZER_FILES, write_model
from model.hub.write import MAX_SHARD_SIZE
from model.network.transformer import Transformer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def reexport(
    source: Path | str,
    out: Path | str,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Transformer:
    """Write the model of `source`, a folder or a .gguf file, as a folder of ours; `dtype` None keeps its type.

    The tokenizer, the card and what ends a generation are the source's own. -> the model as written. Raises
    ConfigError where `out` is not empty or the type has to be given, and what `load_pretrained` and `unpack` raise.
    """
    source, out = Path(source), Path(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty. Choose another place for the model, or remove it.")
    if source.suffix == ".gguf":
        with tempfile.TemporaryDirectory() as folder:
            unpack(source, Path(folder))
            return reexport(folder, out, dtype, max_shard_size)
    config = read_config(source)
    stored = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype is None and stored not in DTYPES:
        raise ConfigError(
            f"{source}/config.json gives {stored} as the type of its weights. Choose the type to write: "
            f"{', '.join(DTYPES)}."
        )
    model, _ = load_pretrained(source, dtype=dtype or DTYPES[stored])
    generation = source / "generation_config.json"
    settings = config | (json.loads(generation.read_text()) if generation.is_file() else {})
    ends = {name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    out.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, "README.md"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    write_model(model, out, ends, max_shard_size)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m model.hub",
        description="Write a Qwen3 or Llama model of any origin as a folder of Stemma's.",
    )
    parser.add_argument("source", type=Path, help="a Hugging Face folder, or a .gguf file (dequantised)")
    parser.add_argument("out", type=Path, help="the folder to write; must be missing or empty")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the written weights (default: the source's)")
    parser.add_argument(
        "--max-shard-size", default=MAX_SHARD_SIZE, help="bytes a file (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        model = reexport(args.source, args.out, DTYPES.get(args.dtype), args.max_shard_size)
    except (StemmaError, OSError, ValueError) as error:  # ValueError: a size that huggingface_hub cannot read
        sys.exit(str(error))
    c, kind = model.config, "Qwen3" if model.config.qk_norm else "Llama"
    print(f"{args.out}: {kind}, {c.n_layer} layers, width {c.d_model}, {model.num_params():,} parameters")
