"""GGUF, the file format of llama.cpp: out through its own converter, in through transformers' reader.

    python -m model.gguf MODEL OUT.gguf --llama-cpp FOLDER [--outtype bf16]

FOLDER is a clone of https://github.com/ggml-org/llama.cpp; docs/model.md says what it needs. Its converter takes our
folders but for one thing: it knows tokenizers by a hash of the ids they give to a test string, which is new with
every vocabulary, and stops at one it has never seen. What it wants to know is only how text is split before BPE.
Ours is split as Qwen2's and DBRX's are, letter for letter, so this command says their names and calls the converter.
"""

import argparse
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from model.hub_config import from_config_json
from model.network.config import Config
from model.tokenizer import split_pattern

# max_digits -> llama.cpp's name of our split_pattern (src/llama-vocab.cpp). Llama 3's `llama-bpe` splits as dbrx
# does but would put a beginning-of-text token, which we do not have, before every prompt.
PRE_TOKENIZERS = {1: "qwen2", 3: "dbrx"}


def pre_tokenizer_name(folder: Path) -> str | None:
    """What llama.cpp calls the way this folder's tokenizer splits text; None if it is not one of ours."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts = (content.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    pattern = parts[0].get("pattern", {}).get("Regex")
    for digits in range(1, 10):
        if pattern == split_pattern(digits):
            if digits not in PRE_TOKENIZERS:
                raise ValueError(
                    f"{folder}: its tokenizer joins up to {digits} digits, for which llama.cpp has no splitting rule. "
                    f"Train with tokenizer.max_digits of {' or '.join(map(str, PRE_TOKENIZERS))} for llama.cpp."
                )
            return PRE_TOKENIZERS[digits]
    return None


def check_rope(config: Config, folder: Path) -> None:
    """Refuse stretched positions that llama.cpp would silently compute in another way."""
    s = config.rope_scaling
    if s is None:
        return
    if s.kind == "llama3" and config.qk_norm:
        raise ValueError(
            f"{folder}: llama.cpp has Llama 3's stretched positions for Llama models only, and would leave them out of "
            "a Qwen3 model without a word. Use yarn, or train without QK-norm."
        )
    if s.kind == "yarn" and (s.attention_factor is not None or not s.truncate):
        raise ValueError(
            f"{folder}: llama.cpp knows YaRN with the paper's own attention factor and whole ramps only. Leave "
            "attention_factor and truncate at their defaults."
        )


def convert(folder: Path, out: Path, llama_cpp: Path, outtype: str = "bf16") -> None:
    """Write the model folder as one .gguf file with llama.cpp's converter, in this process."""
    script = llama_cpp / "convert_hf_to_gguf.py"
    if not script.is_file() or not (llama_cpp / "conversion").is_dir():
        raise FileNotFoundError(
            f"{llama_cpp} is no clone of llama.cpp of 2026 or later: {script} is missing."
        )
    config = json.loads((folder / "config.json").read_text())
    check_rope(from_config_json(config, folder / "config.json"), folder)
    # Before an installed gguf, which may be older than the converter.
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    if name := pre_tokenizer_name(folder):
        from conversion.base import TextModel

        TextModel.get_vocab_base_pre = lambda self, tokenizer: name
    sys.argv = [str(script), str(folder), "--outfile", str(out), "--outtype", outtype]
    runpy.run_path(str(script), run_name="__main__")


def unpack(file: Path, folder: Path) -> None:
    """Write a .gguf file, dequantised to float32, as a Hugging Face folder. transformers reads it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import is_gguf_available

    from model.hub import write_json, write_weights

    if not is_gguf_available():
        raise ModuleNotFoundError(
            f"To read {file}, transformers needs the package gguf: pip install 'stemma[gguf]'"
        )
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, **_what_transformers_leaves_out(file)
    )
    folder.mkdir(parents=True, exist_ok=True)
    settings = theirs.config.to_dict()
    settings.pop("quantization_config", None)
    weights = dict(theirs.state_dict())
    if settings.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    write_weights(weights, folder)
    write_json(folder / "config.json", settings)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _what_transformers_leaves_out(file: Path) -> dict:
    """Settings that its reader (5.23) does not take over: head sizes are, stretched positions are refused."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    kind = reader.get_field("general.architecture").contents()
    scaling = reader.get_field(f"{kind}.rope.scaling.type")
    stretched = scaling is not None and scaling.contents() != "none"
    if stretched or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ValueError(
            f"{file}: its rotary positions are stretched, which transformers does not read from a .gguf file. Take the "
            "model's Hugging Face folder instead."
        )
    size = reader.get_field(f"{kind}.attention.key_length")
    return {} if size is None else {"head_dim": int(size.contents())}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.gguf",
        description="Write a model folder as a .gguf file with llama.cpp's converter.",
    )
    parser.add_argument("model", type=Path, help="the model folder")
    parser.add_argument("out", type=Path, help="the .gguf file to write")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a clone of ggml-org/llama.cpp")
    parser.add_argument("--outtype", default="bf16", help="f32, bf16, f16 or q8_0 (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        convert(args.model, args.out, args.llama_cpp, args.outtype)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
