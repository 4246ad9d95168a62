"""Tokenizer at scale: memory and time of training, speed of encoding, bytes per token against GPT-2's and cl100k's.

    python -m benchmarks.tokenizer train --text TEXT --bytes 1e9 --vocab-size 100000 --out /tmp/vocab
    python -m benchmarks.tokenizer train --text TEXT --bytes 5e7 --vocab-size 100000 --library   # tokenizers' trainer
    python -m benchmarks.tokenizer speed --text TEXT --tokenizer /tmp/vocab
    python -m benchmarks.tokenizer shards --text TEXT --tokenizer /tmp/vocab
    python -m benchmarks.tokenizer ratio --text TEXT --tokenizer /tmp/vocab --ranks js-tiktoken [--all]

TEXT is a folder with a folder of .txt files for each language. A fiftieth of the files, chosen by a hash of their
names, is held out of training; `speed`, `shards` and `ratio` read only those (`ratio --all`: every file).
js-tiktoken (MIT) is the unpacked npm package, which holds the ranks of OpenAI's vocabularies: npm pack js-tiktoken.
kitoken is measured where it is installed (pip install kitoken); rustbpe has no way to load a vocabulary.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import tiktoken

from model.data.config import SplitConfig
from model.data.shards import share_of, write_shards
from model.tokenizer import load_tokenizer
from model.vocabulary.byte_level import split_pattern
from model.vocabulary.config import TokenizerConfig
from model.vocabulary.special import SPECIAL_TOKENS
from model.vocabulary.train import train_tokenizer

HELD_OUT = 0.02  # of the files
PEERS = ("gpt2", "cl100k_base", "o200k_base")
DOCUMENT = 50_000  # characters of a file that encoding is measured on, at most


def files(folder: Path, held_out: bool | None) -> list[Path]:
    """Text files in the order of a hash of their names: those held out, those not, or (None) all."""
    share = {path: share_of(str(path.relative_to(folder))) for path in folder.rglob("*.txt")}
    kept = [path for path in share if held_out is None or (share[path] < HELD_OUT) == held_out]
    if not kept:
        raise SystemExit(f"{folder} holds no such .txt files: it needs a folder of them for each language.")
    return sorted(kept, key=share.__getitem__)


def read(paths: list[Path], n_bytes: float = float("inf")) -> Iterator[str]:
    for path in paths:
        n_bytes -= path.stat().st_size
        if n_bytes < 0:
            return
        yield path.read_text("utf-8", "replace")


class PeakMemory:
    """Peak resident memory of this process and its children together, in bytes, sampled every 50 ms."""

    def __enter__(self):
        self.peak, self._end = 0, threading.Event()
        self._watch = threading.Thread(target=self._sample)
        self._watch.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._watch.join()

    def _sample(self):
        me = psutil.Process()
        while not self._end.wait(0.05):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)


def processor_seconds() -> float:
    return sum(os.times()[:4])


def train(args: argparse.Namespace) -> None:
    texts = read(files(args.text, held_out=False), args.bytes)
    config = TokenizerConfig(vocab_size=args.vocab_size, max_digits=args.max_digits)
    start, used = time.perf_counter(), processor_seconds()
    with PeakMemory() as memory:  # workers that have ended are in the processor seconds too
        if args.library:
            library_trained(texts, config)
        else:
            train_tokenizer(texts, args.out, config)
    print(
        f"{'tokenizers' if args.library else 'ours':10} {args.bytes / 1e6:6.0f} MB, {args.vocab_size:,} tokens: "
        f"{memory.peak / 1e9:.2f} GB peak, {time.perf_counter() - start:.0f} s, "
        f"{processor_seconds() - used:.0f} s of processor time"
    )


def library_trained(texts: Iterator[str], config: TokenizerConfig) -> None:
    """Hugging Face's trainer with the settings of ours."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    learner = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(split_pattern(config.max_digits)), behavior="isolated")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)


def speed(args: argparse.Namespace) -> None:
    texts = [text[:DOCUMENT] for text in read(files(args.text, held_out=True), args.bytes)]
    n_bytes = sum(len(text.encode()) for text in texts)
    print(f"{len(texts)} documents, {n_bytes / 1e6:.1f} MB")
    for threads in args.threads:
        # tokenizers and kitoken read it once per process: measure one number of threads at a time with them.
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        encoders = encoders_of(args.tokenizer, threads)
        ids, seconds = {}, defaultdict(list)
        for _ in range(args.repeats):
            for name, encode in encoders.items():
                used = processor_seconds(), time.perf_counter()
                ids[name] = encode(texts)
                seconds[name].append((processor_seconds() - used[0], time.perf_counter() - used[1]))
        for name, times in seconds.items():
            processor, wall = (
                n_bytes / 1e6 / statistics.median(column) for column in zip(*times, strict=True)
            )
            same = all(map(np.array_equal, ids[name], ids["tokenizers"]))
            print(
                f"{threads} threads  {name:12} {wall:6.2f} MB/s  {processor:6.2f} MB per processor second  "
                f"{'the same ids' if same else 'OTHER IDS'}"
            )


def encoders_of(folder: Path, threads: int) -> dict[str, Callable]:
    """Name -> a function from texts to lists of ids, all with our vocabulary and pattern."""
    ours = load_tokenizer(folder)
    library = {
        "tokenizers": lambda texts: [
            e.ids for e in ours._plain.encode_batch_fast(texts, add_special_tokens=False)
        ],
        "tiktoken": lambda texts: ours._fast.encode_ordinary_batch(texts, num_threads=threads),
    }
    try:
        from kitoken import Kitoken

        kitoken = Kitoken.from_tokenizers_file(str(folder / "tokenizer.json"))
        library["kitoken"] = kitoken.encode_all
    except ImportError:
        print("kitoken is not installed: left out")
    if threads == os.cpu_count():
        library |= {
            "ours, lists": ours.encode_batch,
            "ours, arrays": ours.encode_arrays,
        }  # shards are written from arrays
    return library


def shards(args: argparse.Namespace) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from model.run_log import RunLog

    texts = [text[:DOCUMENT] for text in read(files(args.text, held_out=True), args.bytes)]
    n_bytes = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        documents = Path(folder) / "corpus" / "documents"
        documents.mkdir(parents=True)
        columns = {name: [f"{name}{i}" for i in range(len(texts))] for name in ("record_id", "host")}
        columns |= {"crawl": ["c"] * len(texts), "text": texts}
        pq.write_table(pa.table(columns), documents / "0.parquet")
        ours = load_tokenizer(args.tokenizer)
        for repeat in range(args.repeats):
            start, used = time.perf_counter(), processor_seconds()
            ours.encode_arrays(texts)
            middle, half = time.perf_counter(), processor_seconds()
            write_shards(
                [documents.parent],
                ours,
                Path(folder) / f"tokens{repeat}",
                SplitConfig(),
                RunLog(enabled=False),
            )
            end, whole = time.perf_counter(), processor_seconds()
            print(
                f"encode_arrays {n_bytes / 1e6 / (middle - start):.2f} MB/s ({half - used:.2f} s of processor), "
                f"write_shards {n_bytes / 1e6 / (end - middle):.2f} MB/s ({whole - half:.2f} s of processor)"
            )


def ratio(args: argparse.Namespace) -> None:
    encodings = {folder.name: load_tokenizer(folder).encode for folder in args.tokenizer}
    if args.ranks:
        encodings |= {name: published(args.ranks, name).encode_ordinary for name in PEERS}
    by_language: dict[str, list[Path]] = defaultdict(list)
    for path in files(args.text, held_out=None if args.all else True):
        by_language[path.relative_to(args.text).parts[0]].append(path)
    n_bytes = {language: sum(p.stat().st_size for p in paths) for language, paths in by_language.items()}
    print("| language | KB | " + " | ".join(encodings) + " |\n|---|---|" + "---|" * len(encodings))
    totals = dict.fromkeys(encodings, 0)
    for language in sorted(by_language, key=n_bytes.__getitem__, reverse=True):
        texts = list(read(by_language[language]))
        read_bytes = sum(len(text.encode()) for text in texts)
        counts = {name: sum(len(encode(text)) for text in texts) for name, encode in encodings.items()}
        totals = {name: totals[name] + counts[name] for name in totals}
        if n_bytes[language] >= args.least:
            figures = " | ".join(f"{read_bytes / count:.2f}" for count in counts.values())
            print(f"| {language} | {read_bytes / 1e3:.0f} | {figures} |")
    figures = " | ".join(f"{sum(n_bytes.values()) / count:.2f}" for count in totals.values())
    print(f"| all {len(by_language)} | {sum(n_bytes.values()) / 1e3:.0f} | {figures} |")


def published(package: Path, name: str) -> tiktoken.Encoding:
    """One of OpenAI's vocabularies, from the npm package js-tiktoken: lines of "! first_rank token token …"."""
    source = (package / "dist" / "ranks" / f"{name}.js").read_text()
    spec = json.loads(source[source.index("{") : source.rindex("}") + 1])
    ranks = {}
    for line in spec["bpe_ranks"].split("\n"):
        _, first, *tokens = line.split(" ")
        ranks |= {base64.b64decode(token): int(first) + i for i, token in enumerate(tokens)}
    return tiktoken.Encoding(
        name, pat_str=spec["pat_str"], mergeable_ranks=ranks, special_tokens=spec["special_tokens"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "speed", "shards", "ratio"):
        command = commands.add_parser(name)
        command.add_argument("--text", type=Path, required=True)
        command.add_argument("--bytes", type=float, default=1e9 if name == "train" else 2e7)
        if name == "train":
            command.add_argument("--vocab-size", type=int, default=100_000)
            command.add_argument("--max-digits", type=int, default=1)
            command.add_argument("--out", type=Path, default=Path("/tmp/vocab"))
            command.add_argument("--library", action="store_true", help="Hugging Face's trainer instead")
        else:
            command.add_argument(
                "--tokenizer", type=Path, required=True, nargs="+" if name == "ratio" else None
            )
            command.add_argument("--repeats", type=int, default=3)
        if name == "speed":
            command.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count()])
        if name == "ratio":
            command.add_argument("--ranks", type=Path, help="folder of the npm package js-tiktoken")
            command.add_argument("--all", action="store_true", help="read every file, not only held-out ones")
            command.add_argument(
                "--least", type=float, default=1e5, help="bytes that a language needs for a row"
            )
    args = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("tokenizers", "tiktoken", "numpy"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {versions}")
    {"train": train, "speed": speed, "shards": shards, "ratio": ratio}[args.command](args)


if __name__ == "__main__":
    main()
