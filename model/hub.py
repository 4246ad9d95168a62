"""Models to and from Hugging Face folders, so that transformers, vLLM and llama.cpp load them with no code of ours.

Notable:
- the architecture is written as Qwen3's, or Llama's when the model has no QK-norm; our parameter names are theirs
  behind the prefix `model.`;
- weights are safetensors only: no pickle is ever read or written;
- nothing in a folder holds a time, a host or a path: the same model gives the same bytes.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from model.tokenizer import FILES, SPECIAL_TOKENS, Tokenizer, load_tokenizer
from model.transformer import Config, Transformer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


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
) -> None:
    """Write weights, configuration, tokenizer and model card into `out` (made if missing; other files stay).

    `chat=True` makes <|im_end|> the end of generation: say it for every model tuned on conversations. `card` is
    Markdown; `licence` (an SPDX identifier in lower case), `data` (what it was trained on), `parents` (the models it
    descends from) and `languages` (ISO 639-1) go into the card's head, where hubs and tools look for them.
    """
    from safetensors.torch import save_file

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _copy_tokenizer(Path(tokenizer_folder), out, chat)
    ends = _end_ids(load_tokenizer(out), chat)
    weights = {_their_name(name): w.detach().cpu().contiguous() for name, w in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]  # it is the embedding; transformers ties them again
    save_file(weights, out / f"{WEIGHTS}.partial", metadata={"format": "pt"})
    os.rename(out / f"{WEIGHTS}.partial", out / WEIGHTS)
    _write_json(out / "config.json", _their_config(model, ends))
    _write_json(out / "generation_config.json", ends)
    _write(out / "README.md", _card_head(licence, data, parents, languages) + card)


def load_pretrained(
    folder: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Transformer, Tokenizer]:
    """Read a folder of a Qwen3 or Llama model, ours or another's -> (model in evaluation mode, tokenizer)."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}/config.json is missing, so this is no model folder.")
    config = _our_config(json.loads((folder / "config.json").read_text()), folder)
    with torch.device("meta"):
        model = Transformer(config)
    weights = {_our_name(name): weight.to(dtype) for name, weight in _read_weights(folder).items()}
    if config.tie_embeddings:
        weights["lm_head.weight"] = weights.get("embed_tokens.weight")
    _check_weights(weights, model, folder)
    model.load_state_dict(weights, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.make_rope_tables()
    return model.to(device).eval(), load_tokenizer(folder)


def _their_config(model: Transformer, ends: dict) -> dict:
    config, kind = model.config, "qwen3" if model.config.qk_norm else "llama"
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # where transformers 4, vLLM and llama.cpp look
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
        },  # where transformers 5 looks
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        **ends,
        "torch_dtype": str(model.embed_tokens.weight.dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _our_config(theirs: dict, folder: Path) -> Config:
    kind = theirs.get("model_type")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    n_head = theirs["num_attention_heads"]
    refused = {
        f"the architecture '{kind}'": kind not in ARCHITECTURES,
        "biases": theirs.get("attention_bias") or theirs.get("mlp_bias"),
        f"the activation {theirs.get('hidden_act')}": theirs.get("hidden_act", "silu") != "silu",
        "scaled rotary positions": rope.get("rope_type", rope.get("type", "default")) != "default",
        "sliding windows": theirs.get("use_sliding_window"),
    }
    if reasons := [what for what, present in refused.items() if present]:
        raise ValueError(
            f"{folder}/config.json asks for {', '.join(reasons)}, which Stemma's transformer does not have. "
            "It loads plain Qwen3 and Llama models."
        )
    return Config(
        vocab_size=theirs["vocab_size"],
        n_layer=theirs["num_hidden_layers"],
        n_head=n_head,
        n_kv_head=theirs.get("num_key_value_heads") or n_head,
        head_dim=theirs.get("head_dim") or theirs["hidden_size"] // n_head,
        d_model=theirs["hidden_size"],
        d_ff=theirs["intermediate_size"],
        max_seq_len=theirs["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or theirs.get("rope_theta") or 10_000.0),
        norm_eps=theirs.get("rms_norm_eps", 1e-6),
        qk_norm=kind == "qwen3",
        tie_embeddings=theirs.get("tie_word_embeddings", False),
    )


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    index = folder / INDEX
    names = (
        sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [WEIGHTS]
    )
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing. Stemma reads safetensors only: a folder with pytorch_model.bin must be "
                "converted first."
            )
        weights |= load_file(folder / name)
    return {name: weight for name, weight in weights.items() if not name.endswith("rotary_emb.inv_freq")}


def _check_weights(weights: dict, model: Transformer, folder: Path) -> None:
    expected = {name: weight.shape for name, weight in model.state_dict().items()}
    found = {name: None if weight is None else weight.shape for name, weight in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder}: {len(wrong)} tensors do not fit config.json; the first is {_their_name(name)}, where "
            f"{_shape(expected.get(name))} is expected and {_shape(found.get(name))} found. The folder is mixed up or "
            "cut short: export or download it again."
        )


def _shape(size: torch.Size | None) -> str:
    return "nothing" if size is None else str(tuple(size))


def _their_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


def _our_name(name: str) -> str:
    return name.removeprefix("model.")


def _end_ids(tokenizer: Tokenizer, chat: bool) -> dict:
    ends = [tokenizer.im_end_id, tokenizer.eos_id] if chat else [tokenizer.eos_id]
    ends = [i for i in ends if i is not None]
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else (ends or [None])[-1]
    return {"eos_token_id": ends if len(ends) > 1 else (ends or [None])[0], "pad_token_id": pad}


def _copy_tokenizer(folder: Path, out: Path, chat: bool) -> None:
    """Copy the tokenizer's files; a chat model's end-of-sequence token is the end of a turn, as in Qwen's."""
    for name in FILES:
        if not (folder / name).is_file():
            continue
        if folder.resolve() != out.resolve():
            shutil.copyfile(folder / name, out / name)
        if chat and name in ("tokenizer_config.json", "special_tokens_map.json"):
            content = json.loads((out / name).read_text())
            _write_json(out / name, content | {"eos_token": SPECIAL_TOKENS["im_end"]})


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


def _write_json(path: Path, content: dict) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.rename(partial, path)
