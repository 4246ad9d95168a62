"""Learning a vocabulary from the corpus: pieces counted, merges learned (bpe.py), the tokenizer's folder written.

The folder holds Hugging Face's tokenizer.json with the special tokens and the chat template in its
tokenizer_config.json, so that `transformers.AutoTokenizer` loads it. The same texts, in any order, give the same bytes.

    python -m model.vocabulary.train --config FILE.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models

from core.errors import ConfigError, DataError, StemmaError
from core.files import atomic_folder, write_atomically
from core.settings import read_settings
from model.chat import CHAT_TEMPLATE
from model.data.documents import read_documents
from model.tokenizer import byte_level_bpe, load_tokenizer
from model.vocabulary.bpe import count_pieces, learn_merges
from model.vocabulary.byte_level import BYTES, byte_of_char, split_pattern
from model.vocabulary.config import TokenizerConfig
from model.vocabulary.special import SPECIAL_TOKENS


def train_tokenizer(texts: Iterable[str], out: Path, config: TokenizerConfig) -> None:
    """Learn a vocabulary from texts and write its folder, whole or not at all.

    Raises ConfigError where `out` exists already, DataError where the texts are empty.
    """
    pieces = count_pieces(texts, split_pattern(config.max_digits))
    if not pieces:
        raise DataError(
            f"{out}: there is no text to learn a vocabulary from. Is the corpus empty? Look at its funnel."
        )
    byte_values = byte_of_char()
    chars = sorted(byte_values)  # the ids of the bytes follow GPT-2's printable characters, as in the library
    n_merges = config.vocab_size - BYTES - len(SPECIAL_TOKENS)
    learned = learn_merges(pieces, [byte_values[char] for char in chars], n_merges, config.min_frequency)
    char_of = {byte: char for char, byte in byte_values.items()}

    def written(token: bytes) -> str:
        return "".join(char_of[byte] for byte in token)

    merges = [(written(left), written(right)) for left, right in learned]
    tokens = dict.fromkeys([*SPECIAL_TOKENS.values(), *chars, *(left + right for left, right in merges)])
    bpe = byte_level_bpe(models.BPE({token: i for i, token in enumerate(tokens)}, merges), config.max_digits)
    bpe.add_special_tokens(list(SPECIAL_TOKENS.values()))
    _write_folder(bpe, out)


def read_texts(corpora: Sequence[Path], training_set: Path | None = None) -> Iterator[str]:
    """The texts that training reads, in the order of files and rows."""
    for batch in read_documents(corpora, ["text"], training_set):
        yield from batch["text"]


def _write_folder(bpe: tokenizers.Tokenizer, out: Path) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already. Remove it, or choose another folder for the tokenizer.")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS["eos"],
        "pad_token": SPECIAL_TOKENS["pad"],
        "clean_up_tokenization_spaces": False,  # it would remove spaces before punctuation
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    special = {
        "eos_token": SPECIAL_TOKENS["eos"],
        "pad_token": SPECIAL_TOKENS["pad"],
        "additional_special_tokens": [t for n, t in SPECIAL_TOKENS.items() if n not in ("eos", "pad")],
    }
    with atomic_folder(out) as partial:
        bpe.save(str(partial / "tokenizer.json"))
        for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
            (partial / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Train from a JSON file: {"params": {…}, "inputs": {"cleaned_corpus": [folders], …}, "out": folder}."""
    parser = argparse.ArgumentParser(description="Learn a byte-level BPE vocabulary from a cleaned corpus.")
    parser.add_argument("--config", type=Path, required=True, help="JSON: params, inputs.cleaned_corpus, out")
    config = json.loads(parser.parse_args().config.read_text())
    folders = [Path(folder) for folder in config["inputs"]["cleaned_corpus"]]
    training_set = config["inputs"].get("training_set")
    try:
        settings = read_settings(TokenizerConfig, config.get("params"), "tokenizer")
        texts = read_texts(folders, Path(training_set) if training_set else None)
        train_tokenizer(texts, Path(config["out"]), settings)
    except StemmaError as error:
        sys.exit(str(error))
    result = {"vocab_size": load_tokenizer(config["out"]).vocab_size}
    if config.get("result"):
        write_atomically(Path(config["result"]), json.dumps(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
