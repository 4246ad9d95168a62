"""GGUF, the file format of llama.cpp, written by llama.cpp's own converter.

    python -m model.hub.gguf_export MODEL OUT.gguf --llama-cpp FOLDER [--outtype bf16]

FOLDER is a clone of https://github.com/ggml-org/llama.cpp; docs/model.md lists its dependencies. Its converter reads
our folders except for one thing: it recognises a tokenizer by a hash of the ids it gives to a test string, which is
different for every vocabulary, and stops at an unknown hash. All it has to know is how text is split before BPE.
Ours is split exactly as Qwen2's and DBRX's, so this command gives it that name and calls the converter.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import DataError, MissingError
from model.hub.config_json import from_config_json
from model.network.config import Config
from model.vocabulary.byte_level import split_pattern

# max_digits -> llama.cpp's name of our split_pattern (src/llama-vocab.cpp). Llama 3's `llama-bpe` splits as dbrx
# does but would put a beginning-of-text token, which we do not have, before every prompt.
PRE_TOKENIZERS = {1: "qwen2", 3: "dbrx"}


def pre_tokenizer_name(folder: Path) -> str | None:
    """llama.cpp's name of the rule by which this folder's tokenizer splits text; None if the rule is not ours.

    Raises DataError where the rule is ours but llama.cpp has no such rule.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts = (content.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    pattern = parts[0].get("pattern", {}).get("Regex")
    for digits in range(1, 10):
        if pattern == split_pattern(digits):
            if digits not in PRE_TOKENIZERS:
                raise DataError(
                    f"{folder}: its tokenizer joins up to {digits} digits, for which llama.cpp has no splitting rule. "
                    f"Train with tokenizer.max_digits of {' or '.join(map(str, PRE_TOKENIZERS))} for llama.cpp."
                )
            return PRE_TOKENIZERS[digits]
    return None


def check_rope(config: Config, folder: Path) -> None:
    """Raise DataError for scaled rotary positions that llama.cpp would silently compute differently."""
    s = config.rope_scaling
    if s is None:
        return
    if s.kind == "llama3" and config.qk_norm:
        raise DataError(
            f"{folder}: llama.cpp has Llama 3's scaled positions for Llama models only, and would silently leave them "
            "out of a Qwen3 model. Use yarn, or train without QK-norm."
        )
    if s.kind == "yarn" and (s.attention_factor is not None or not s.truncate):
        raise DataError(
            f"{folder}: llama.cpp has YaRN only with the paper's attention factor and a ramp between whole pairs. "
            "Leave attention_factor and truncate at their defaults."
        )


def convert(folder: Path, out: Path, llama_cpp: Path, outtype: str = "bf16") -> None:
    """Write the model folder as one .gguf file with llama.cpp's converter, in this process.

    Raises MissingError where `llama_cpp` is not a clone, and DataError where llama.cpp would compute another model.
    """
    script = llama_cpp / "convert_hf_to_gguf.py"
    if not script.is_file() or not (llama_cpp / "conversion").is_dir():
        raise MissingError(f"{llama_cpp} is no clone of llama.cpp of 2026 or later: {script} is missing.")
    config = json.loads((folder / "config.json").read_text())
    check_rope(from_config_json(config, folder / "config.json"), folder)
    # Before an installed gguf, which may be older than the converter.
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    if name := pre_tokenizer_name(folder):
        from conversion.base import TextModel

        TextModel.get_vocab_base_pre = lambda self, tokenizer: name
    sys.argv = [str(script), str(folder), "--outfile", str(out), "--outtype", outtype]
    runpy.run_path(str(script), run_name="__main__")


def main(argv: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m model.hub.gguf_export",
        description="Write a model folder as a .gguf file with llama.cpp's converter.",
    )
    parser.add_argument("model", type=Path, help="the model folder")
    parser.add_argument("out", type=Path, help="the .gguf file to write")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a clone of ggml-org/llama.cpp")
    parser.add_argument("--outtype", default="bf16", help="f32, bf16, f16 or q8_0 (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        convert(args.model, args.out, args.llama_cpp, args.outtype)
    except (ValueError, OSError) as error:  # ours, and the converter's
        sys.exit(str(error))


if __name__ == "__main__":
    main()
