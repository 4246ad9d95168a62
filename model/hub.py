"""Models to and from Hugging Face folders, so that transformers, vLLM and llama.cpp load them with no code of ours.

Notable:
- the architecture is written as Qwen3's, or Llama's when the model has no QK-norm (hub_config.py); our parameter
  names are theirs behind the prefix `model.`;
- weights are safetensors only, in one file or several: no pickle is ever read or written. Reading checks names and
  shapes before a weight is loaded, and holds the model once, never a second copy of it;
- nothing in a folder holds a time, a host or a path: the same model gives the same bytes.

    python -m model.hub IN OUT [--dtype bfloat16] [--max-shard-size 5GB]

writes any folder of a Qwen3 or Llama model, or a .gguf file of one (dequantised), as a folder of ours.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.hub_config import from_config_json, to_config_json
from model.network.transformer import Transformer
from model.tokenizer import FILES, SPECIAL_TOKENS, Tokenizer, load_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
MAX_SHARD_SIZE = "50GB"  # transformers 5's: one file for all but the largest
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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

    `chat=True` makes <|im_end|> the end of generation: say it for every model tuned on conversations. `card` is
    Markdown; `licence` (an SPDX identifier in lower case), `data` (what it was trained on), `parents` (the models it
    descends from) and `languages` (ISO 639-1) go into the card's head, where hubs and tools look for them.
    `max_shard_size`: bytes, or as in "5GB", above which the weights are cut into several files.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _copy_tokenizer(Path(tokenizer_folder), out, chat)
    ends = _end_ids(load_tokenizer(out), chat)
    _write_model(model, out, ends, max_shard_size)
    _write(out / "README.md", _card_head(licence, data, parents, languages) + card)


def load_pretrained(
    folder: Path | str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Transformer, Tokenizer]:
    """Read a folder of a Qwen3 or Llama model, ours or another's -> (model in evaluation mode, tokenizer)."""
    folder = Path(folder)
    config = from_config_json(_read_config(folder), folder / "config.json")
    tokenizer = _load_tokenizer(folder)
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    files = _weight_files(folder)
    _check_shapes(_shapes(files), model, folder)
    model.to_empty(device=device)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    model.make_rope_tables()
    _fill(model, files)
    return model.to(device).eval(), tokenizer


def reexport(
    source: Path | str,
    out: Path | str,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Transformer:
    """Write the model of `source`, a folder or a .gguf file, as a folder of ours; `dtype` None keeps its type.

    The tokenizer, the card and what ends a generation are the source's own. -> the model as written.
    """
    source, out = Path(source), Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty. Choose another place for the model, or remove it.")
    if source.suffix == ".gguf":
        from model.gguf import unpack

        with tempfile.TemporaryDirectory() as folder:
            unpack(source, Path(folder))
            return reexport(folder, out, dtype, max_shard_size)
    theirs = _read_config(source)
    stored = theirs.get("dtype") or theirs.get("torch_dtype") or "float32"
    if dtype is None and stored not in DTYPES:
        raise ValueError(
            f"{source}/config.json says that weights are {stored}. Say what to write: {', '.join(DTYPES)}."
        )
    model, _ = load_pretrained(source, dtype=dtype or DTYPES[stored])
    generation = source / "generation_config.json"
    said = theirs | (json.loads(generation.read_text()) if generation.is_file() else {})
    ends = {name: said.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    out.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, "README.md"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    _write_model(model, out, ends, max_shard_size)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.hub",
        description="Write a Qwen3 or Llama model of any origin as a folder of Stemma's.",
    )
    parser.add_argument("source", type=Path, help="a Hugging Face folder, or a .gguf file (dequantised)")
    parser.add_argument("out", type=Path, help="the folder to write; must not hold anything yet")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the written weights (default: the source's)")
    parser.add_argument(
        "--max-shard-size", default=MAX_SHARD_SIZE, help="bytes a file (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        model = reexport(args.source, args.out, DTYPES.get(args.dtype), args.max_shard_size)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(str(error))
    c, kind = model.config, "Qwen3" if model.config.qk_norm else "Llama"
    print(f"{args.out}: {kind}, {c.n_layer} layers, width {c.d_model}, {model.num_params():,} parameters")


def _write_model(model: Transformer, out: Path, ends: dict, max_shard_size: int | str) -> None:
    weights = {_their_name(name): weight.detach() for name, weight in model.state_dict().items()}
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]  # it is the embedding; transformers ties them again
    write_weights(weights, out, max_shard_size)
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    write_json(out / "config.json", to_config_json(model.config, dtype, ends))
    write_json(out / "generation_config.json", {name: i for name, i in ends.items() if i is not None})


def write_weights(
    weights: Mapping[str, Tensor], out: Path, max_shard_size: int | str = MAX_SHARD_SIZE
) -> None:
    """One file, or several and their index; a file of another cut would be read in their place, so it goes."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    cut = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
    for file, names in cut.filename_to_tensors.items():
        part = {
            name: weights[name].cpu().contiguous() for name in names
        }  # a GPU's weights: one file at a time
        save_file(part, out / f"{file}.partial", metadata={"format": "pt"})
        os.rename(out / f"{file}.partial", out / file)
    written = set(cut.filename_to_tensors)
    if cut.is_sharded:
        write_json(out / INDEX, {"metadata": cut.metadata, "weight_map": cut.tensor_to_filename})
        written.add(INDEX)
    for path in out.iterdir():
        if WEIGHT_FILES.fullmatch(path.name) and path.name not in written:
            path.unlink()


def _read_config(folder: Path) -> dict:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}/config.json is missing, so this is no model folder.")
    return json.loads((folder / "config.json").read_text())


def _load_tokenizer(folder: Path) -> Tokenizer:
    try:
        return load_tokenizer(folder)
    except KeyError as char:
        raise ValueError(
            f"{folder}/tokenizer.json is no byte-level BPE: it has a token with {char}, which stands for no byte. "
            "Stemma reads vocabularies like GPT-2's, Llama 3's and Qwen's, not SentencePiece's (Llama 2, Gemma)."
        ) from char


def _weight_files(folder: Path) -> list[Path]:
    index, names = folder / INDEX, [WEIGHTS]
    if index.is_file() and not (folder / WEIGHTS).is_file():  # with both, transformers reads the one file
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing. Stemma reads safetensors only: a folder with pytorch_model.bin must be "
                "converted first."
            )
    return [folder / name for name in names]


def _shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every stored weight, from the files' headers."""
    return {ours: tuple(file.get_slice(theirs).get_shape()) for file, theirs, ours in _stored(files)}


def _check_shapes(found: Mapping[str, tuple[int, ...]], model: Transformer, folder: Path) -> None:
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if model.config.tie_embeddings:
        expected["lm_head.weight"] = found.get("lm_head.weight")  # the embedding, whether or not it is there
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder}: {len(wrong)} tensors do not fit config.json; the first is {_their_name(name)}, where "
            f"{expected.get(name, 'nothing')} is expected and {found.get(name, 'nothing')} found. The folder is mixed "
            "up or cut short: export or download it again."
        )


@torch.no_grad()
def _fill(model: Transformer, files: Sequence[Path]) -> None:
    """Copy the stored weights into the model's memory, one at a time, to its type and device."""
    weights = model.state_dict()
    for file, theirs, ours in _stored(files):
        if not (ours == "lm_head.weight" and model.config.tie_embeddings):
            weights[ours].copy_(file.get_tensor(theirs))


def _stored(files: Sequence[Path]) -> Iterator[tuple]:
    """(open file, its name there, our name) of every weight; old checkpoints also store rotary frequencies."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if not name.endswith("rotary_emb.inv_freq"):
                    yield file, name, name.removeprefix("model.")


def _their_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


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


def write_json(path: Path, content: dict) -> None:
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.rename(partial, path)


if __name__ == "__main__":
    main()
