"""Speed of generation against transformers' `generate`, and the cost of int8 weights in bits per byte.

    python -m benchmarks.generation [--models demo,30M] [--folder DIR] [--batches 32] [--new 128] [--repeats 3]
    python -m benchmarks.generation --folder DATA/sft_model --questions HELDOUT.parquet --new 64
    python -m benchmarks.generation --loss --folder DIR [--text FILE] [--bytes 60000]

Both generate greedily from the same weights and the same random prompts of 8 to 64 tokens, in one process, alternately;
the ratio is the median over the repeats. transformers runs with its default cache and, with --static, with its static
one (not compiled: compiling took longer than the rest on the machine this was written on). `same` is the share of
tokens on which both agree: float32 sums in another order, so that near-ties of random weights may resolve differently.
--questions asks an assistant real questions; answers end at their stop token, and the tokens up to it are counted.
--loss gives bits per byte of a text in windows of at most 1,024 tokens, with float32 and with int8 weights; without
--text the text is Python's own help.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch

from model.chat import render
from model.generation.generate import generate
from model.generation.quantise import quantise
from model.hub.load import load_pretrained
from model.hub.save import save_pretrained
from model.network.config import Config
from model.network.transformer import Transformer
from model.tokenizer import Tokenizer
from model.vocabulary.config import TokenizerConfig
from model.vocabulary.train import train_tokenizer

MODELS = {"demo": Config.from_depth(4, 1024), "30M": Config.from_depth(8, 16_384)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="demo,30M", help="with random weights: " + ", ".join(MODELS))
    parser.add_argument("--folder", type=Path, help="a model folder to measure instead")
    parser.add_argument("--questions", type=Path, help="Parquet with a column messages, for --folder")
    parser.add_argument("--batches", default="32", help="rows of a batch")
    parser.add_argument("--new", type=int, default=128, help="new tokens per row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--static", action="store_true", help="also transformers' static cache")
    parser.add_argument("--loss", action="store_true", help="bits per byte instead of speed")
    parser.add_argument("--text", type=Path, help="UTF-8")
    parser.add_argument("--bytes", type=int, default=60_000, help="of the text, at most")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument(
        "--cpu", action="store_true", help="CPU-seconds, for a busy machine; with --threads 1"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    import transformers

    transformers.logging.set_verbosity_error()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, float32, ", end="")
    print("CPU-seconds" if args.cpu else "seconds", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [args.folder] if args.folder else random_models(args.models.split(","), Path(scratch))
        for folder in folders:
            if args.loss:
                print_loss(folder, args.text, args.bytes)
            else:
                for batch in map(int, args.batches.split(",")):
                    print_speed(folder, batch, args)


def random_models(names: list[str], scratch: Path) -> list[Path]:
    """Folders of models with random weights; the matrices that are zero in a new model are random, too."""
    from pydoc_data.topics import topics

    train_tokenizer(topics.values(), scratch / "tokenizer", TokenizerConfig(vocab_size=1024))
    for name in names:
        torch.manual_seed(0)
        model = Transformer(MODELS[name])
        with torch.no_grad():
            for weight in model.parameters():
                if not weight.any():
                    weight.normal_(0, weight.shape[1] ** -0.5)
        save_pretrained(model, scratch / "tokenizer", scratch / name, "")
    return [scratch / name for name in names]


def print_speed(folder: Path, batch: int, args: argparse.Namespace) -> None:
    from transformers import AutoModelForCausalLM

    (model, tokenizer), small = load_pretrained(folder), quantise(load_pretrained(folder)[0])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if args.questions:
        prompts, stop = questions(args.questions, tokenizer, batch), tokenizer.im_end_id
    else:
        prompts, stop = random_prompts(model.config.vocab_size, batch), None
    functions = {
        "transformers": lambda: their_tokens(theirs, prompts, args.new, stop),
        "stemma": lambda: our_tokens(model, prompts, args.new, stop),
        "stemma int8": lambda: our_tokens(small, prompts, args.new, stop),
    }
    if args.static:
        functions["transformers static"] = lambda: their_tokens(
            theirs, prompts, args.new, stop, cache_implementation="static", disable_compile=True
        )
    written, seconds = alternately(
        functions, args.repeats, time.process_time if args.cpu else time.perf_counter
    )
    base = seconds["transformers"]
    params = model.num_params() / 1e6
    print(f"{folder.name}: {params:.1f}M parameters, {batch} rows, at most {args.new} tokens each")
    for name in functions:
        pairs = zip(written[name], written["transformers"], strict=True)
        same = statistics.mean(a == b for x, y in pairs for a, b in zip(x, y, strict=False))
        ratio = statistics.median(t / s for t, s in zip(base, seconds[name], strict=True))
        speed = sum(map(len, written[name])) / statistics.median(seconds[name])
        print(f"  {name:20} {speed:9,.0f} tokens/s   {ratio:5.2f} x   same {100 * same:5.1f} %", flush=True)


def alternately(
    functions: dict[str, Callable[[], list]], repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, list], dict[str, list[float]]]:
    """What each function returns, and the seconds of each repeat, alternately; a first round is not counted."""
    written = {name: function() for name, function in functions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            seconds[name].append(clock() - start)
    return written, seconds


def random_prompts(vocab_size: int, n: int) -> list[list[int]]:
    dice = random.Random(0)
    lengths = [dice.randrange(8, 65) for _ in range(n)]
    return [[dice.randrange(vocab_size) for _ in range(length)] for length in lengths]


def questions(path: Path, tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """The first messages of conversations, as prompts."""
    conversations = pq.read_table(path).column("messages").to_pylist()
    return [
        render(messages[:1], tokenizer, True)[0] for messages in random.Random(0).sample(conversations, n)
    ]


def our_tokens(
    model: Transformer, prompts: list[list[int]], new: int, stop: int | None = None
) -> list[list[int]]:
    stops = [] if stop is None else [stop]
    return [found.ids for found in generate(model, prompts, max_new_tokens=new, stop_ids=stops)]


@torch.inference_mode()
def their_tokens(
    model, prompts: list[list[int]], new: int, stop: int | None = None, **cache
) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": stop, "pad_token_id": 0} | cache
    rows = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, longest:].tolist()
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def print_loss(folder: Path, text: Path | None, limit: int) -> None:
    if text is None:
        from pydoc_data.topics import topics

        data = "\n\n".join(topics.values()).encode()
    else:
        data = text.read_bytes()
    model, tokenizer = load_pretrained(folder)
    ids = tokenizer.encode(data[:limit].decode("utf-8", "ignore"))
    before = bits_per_byte(model, tokenizer, ids)
    after = bits_per_byte(quantise(model), tokenizer, ids)
    print(
        f"{folder.name}: {len(ids):,} tokens of {text.name if text else 'Python help'}: bits per byte",
        end=" ",
    )
    print(
        f"float32 {before:.5f}, int8 {after:.5f}: {after - before:+.5f} ({100 * (after / before - 1):+.3f} %)"
    )


@torch.inference_mode()
def bits_per_byte(model: Transformer, tokenizer: Tokenizer, ids: list[int]) -> float:
    """Over windows that overlap in one token; the first token of the text is not scored."""
    window = min(1024, model.config.max_seq_len)
    nats = 0.0
    for start in range(0, len(ids) - 1, window):
        part = torch.tensor([ids[start : start + window + 1]])
        nats += float(model(part[:, :-1], part[:, 1:]).double().sum())
    return nats / math.log(2) / len(tokenizer.decode_bytes(ids[1:]))


if __name__ == "__main__":
    main()
