"""Writing a model folder: weights, configuration, tokenizer and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.files import write_atomically
from model.hub.config_json import to_config_json
from model.hub.weights import stored_name
from model.hub.write import MAX_SHARD_SIZE, write_json, write_weights
from model.network.transformer import Transformer
from model.tokenizer import Tokenizer, load_tokenizer
from model.vocabulary.special import SPECIAL_TOKENS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def save_pretrained(
    model: Transformer,
    tokenizer_folder: Path | str,
    out: Path | str,
    card: str,
    *,
    chat: bool = False,
    licence: str | None = None,
    data: Sequence[str] = (),
    parents: Sequence[str] = (),
    languages: Sequence[str] = (),
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Write weights, configuration, tokenizer and model card into `out` (made if missing; other files stay).

    `chat=True` makes <|im_end|> the end of generation: set it for every model tuned on conversations. `card` is
    Markdown; `licence` (an SPDX identifier in lower case), `data` (what it was trained on), `parents` (the models it
    descends from) and `languages` (ISO 639-1) go into the card's head, where hubs and tools look for them.
    `max_shard_size`: bytes, or as in "5GB", above which the weights are split into several files.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _copy_tokenizer(Path(tokenizer_folder), out, chat)
    write_model(model, out, _end_ids(load_tokenizer(out), chat), max_shard_size)
    write_atomically(out / "README.md", _card_head(licence, data, parents, languages) + card)


def write_model(model: Transformer, out: Path, ends: dict[str, Any], max_shard_size: int | str) -> None:
    """Write weights and configuration. `ends`: bos_token_id, eos_token_id and pad_token_id as generation has them."""
    weights = {stored_name(name): weight.detach() for name, weight in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]  # it is the embedding; transformers ties them again
    write_weights(weights, out, max_shard_size)
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    write_json(out / "config.json", to_config_json(model.config, dtype, ends))
    write_json(out / "generation_config.json", {name: i for name, i in ends.items() if i is not None})


def _end_ids(tokenizer: Tokenizer, chat: bool) -> dict[str, int | list[int] | None]:
    """What ends and pads a generation, as far as the vocabulary has it."""
    im_end, eos, pad = (tokenizer.special_ids.get(SPECIAL_TOKENS[name]) for name in ("im_end", "eos", "pad"))
    ends = [i for i in ((im_end, eos) if chat else (eos,)) if i is not None]
    last = ends[-1] if ends else None
    return {"eos_token_id": ends if len(ends) > 1 else last, "pad_token_id": last if pad is None else pad}


def _copy_tokenizer(folder: Path, out: Path, chat: bool) -> None:
    """Copy the tokenizer's files; a chat model's end-of-sequence token is the end of a turn, as in Qwen's."""
    for name in TOKENIZER_FILES:
        if not (folder / name).is_file():
            continue
        if folder.resolve() != out.resolve():
            shutil.copyfile(folder / name, out / name)
        if chat and name in ("tokenizer_config.json", "special_tokens_map.json"):
            content = json.loads((out / name).read_text())
            write_json(out / name, content | {"eos_token": SPECIAL_TOKENS["im_end"]})


def _card_head(
    licence: str | None, data: Sequence[str], parents: Sequence[str], languages: Sequence[str]
) -> str:
    """The YAML head of a model card. JSON strings are YAML strings, so no name can break out of its field."""
    fields = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": licence,
        "language": list(languages),
        "base_model": list(parents),
        "datasets": list(data),
        "tags": ["stemma"],
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items() if value]
    return "\n".join(["---", *lines, "---", "", ""])
