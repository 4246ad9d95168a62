"""config.json of a Hugging Face model folder, to and from our Config: Qwen3's, or Llama's where there is no QK-norm.

A setting that our transformer does not implement is refused by name; nothing is silently ignored.
"""

import math
from pathlib import Path
from typing import Any

from core.errors import DataError
from model.network.config import ROPE_KINDS, Config, RopeScaling

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}


def to_config_json(config: Config, dtype: str, ends: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json. `ends`: bos_token_id, eos_token_id and pad_token_id as generation has them."""
    kind = "qwen3" if config.qk_norm else "llama"
    rope = _rope_parameters(config.rope_scaling)
    content = {
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
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},  # where transformers 5 looks
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        **ends,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if config.rope_scaling is not None:
        content["rope_scaling"] = rope  # for programs that read the top-level rope_theta
        if "original_max_position_embeddings" in rope:  # llama.cpp's converter reads Llama 3's only here
            content["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return content


def from_config_json(content: dict[str, Any], where: Path) -> Config:
    """The content of config.json -> Config; `where` names the file in errors. Raises DataError for another model."""
    kind = content.get("model_type")
    if kind not in ARCHITECTURES:
        raise DataError(
            f"{where} asks for the architecture '{kind}', which Stemma does not implement. It loads Qwen3 and Llama."
        )
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}  # transformers 5's order, too
    scaling = rope.get("rope_type", rope.get("type", "default"))
    windows = content.get("use_sliding_window") or "sliding_attention" in (content.get("layer_types") or ())
    refused = {
        "biases": content.get("attention_bias") or content.get("mlp_bias"),
        f"the activation {content.get('hidden_act')}": content.get("hidden_act", "silu") != "silu",
        f"rotary positions of the kind '{scaling}' (known: default, {', '.join(ROPE_KINDS)})": scaling
        not in ("default", *ROPE_KINDS),
        "rotary positions on a part of each head": rope.get("partial_rotary_factor", 1) != 1,
        "sliding windows": windows,
    }
    if reasons := [what for what, present in refused.items() if present]:
        raise DataError(
            f"{where} asks for {' and '.join(reasons)}, which Stemma's transformer does not have. "
            "Choose a model without, or convert it with the library that made it."
        )
    n_head = content["num_attention_heads"]
    return Config(
        vocab_size=content["vocab_size"],
        n_layer=content["num_hidden_layers"],
        n_head=n_head,
        n_kv_head=content.get("num_key_value_heads") or n_head,
        head_dim=content.get("head_dim") or (128 if kind == "qwen3" else content["hidden_size"] // n_head),
        d_model=content["hidden_size"],
        d_ff=content["intermediate_size"],
        max_seq_len=content["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or content.get("rope_theta") or 10_000.0),
        rope_scaling=None if scaling == "default" else _rope_scaling(scaling, rope, content, where),
        norm_eps=content.get("rms_norm_eps", 1e-6),
        qk_norm=kind == "qwen3",
        tie_embeddings=content.get("tie_word_embeddings", False),
    )


def _rope_parameters(s: RopeScaling | None) -> dict[str, Any]:
    """transformers' names for our fields; only those of the kind, as transformers warns about others."""
    if s is None:
        return {"rope_type": "default"}
    parameters: dict[str, Any] = {"rope_type": s.kind, "factor": s.factor}
    if s.kind != "linear":
        parameters["original_max_position_embeddings"] = s.original_max_seq_len
    if s.kind == "llama3":
        parameters |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
    if s.kind == "yarn":
        parameters |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow}
        if s.attention_factor is not None:
            parameters["attention_factor"] = s.attention_factor
        if not s.truncate:
            parameters["truncate"] = False
    return parameters


def _rope_scaling(kind: str, rope: dict[str, Any], content: dict[str, Any], where: Path) -> RopeScaling:
    needed = {"llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ("factor",))
    if missing := [name for name in needed if rope.get(name) is None]:
        raise DataError(
            f"{where}: rotary positions of the kind '{kind}' lack {missing[0]}. Take it from the model's publisher."
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")
    given: dict[str, Any] = {name: float(rope[name]) for name in names if rope.get(name) is not None}
    original = content.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    if kind != "linear":
        given["original_max_seq_len"] = original or content["max_position_embeddings"]
    if kind == "yarn":
        given["truncate"] = rope.get("truncate", True)
        scale, scale_all = rope.get("mscale"), rope.get("mscale_all_dim")  # DeepSeek's form of the factor
        if scale and scale_all and "attention_factor" not in given:
            log = 0.1 * math.log(given["factor"])
            given["attention_factor"] = (scale * log + 1) / (scale_all * log + 1)
    return RopeScaling(kind, **given)
