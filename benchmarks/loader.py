"""How fast training data is read: tokens a second of Loader.batch, and how long a GPU would wait for it.

    python -m benchmarks.loader                          # 100 million synthetic tokens, from the page cache
    python -m benchmarks.loader --index 10_000_000       # opening and ordering an index of that many documents
    python -m benchmarks.loader --shards data/base_model/tokens   # how real documents pack and split

Synthetic documents have log-normal lengths (median 400 tokens, mean 733), about as web pages have. batch() is timed in
CPU seconds of its one thread, Prefetch in wall-clock seconds. "of a step" is batch()'s time as a share of the time
that one H100 needs for the same tokens at 124M parameters (llm.c's log: 0.46M tokens/s). "wait" is measured: a consumer
takes batches from Prefetch, sleeps as long as the H100 would compute, and its waiting is divided by the total time.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.files import write_json
from core.hashing import file_sha256
from model.data.config import HELD_OUT, PACKINGS
from model.data.loader import Loader, TokenData
from model.data.prefetch import Prefetch
from model.data.shards import INDEX_SCHEMA

SEQ_LEN = 1024
H100 = 460_000  # tokens/s of GPT-2 124M, llm.c, bf16
VOCAB = 50_257
T = TypeVar("T")


def write_synthetic(folder: Path, documents: int, sparse: bool) -> Path:
    """Shards of synthetic documents and their index; sparse: the tokens are a hole in the file, all of them 0."""
    draw = np.random.default_rng(0)
    length = np.maximum(2, draw.lognormal(np.log(400), 1.1, documents)).astype(np.int64)
    ends = np.cumsum(length)
    with open(folder / "shard-00000.bin", "wb") as file:
        if sparse:
            file.truncate(2 * int(ends[-1]))
        else:
            tokens = draw.integers(1, VOCAB, ends[-1], dtype=np.uint16)
            tokens[ends - 1] = 0
            file.write(tokens.tobytes())
    host = pa.array(draw.integers(0, documents // 10 + 1, documents))
    columns = {
        "record_id": record_ids(draw.bytes(16 * documents)),
        "crawl": pa.array(["made-up"]).take(pa.array(np.zeros(documents, np.int64))),
        "host": pc.binary_join_element_wise("host", host.cast(pa.string()), ".example", ""),
        "shard": np.zeros(documents, np.int32),
        "start": ends - length,
        "length": length,
        "n_bytes": 4 * length,
        "split": np.where(draw.random(documents) < 0.05, "held_out", "train"),
        "weight": np.ones(documents),
    }
    pq.write_table(pa.table(columns, schema=INDEX_SCHEMA), folder / "index.parquet", compression="zstd")
    shard = {"file": "shard-00000.bin", "tokens": int(ends[-1]), "sha256": "made up"}
    index = {"file": "index.parquet", "sha256": file_sha256(folder / "index.parquet")}
    write_json(
        folder / "manifest.json", {"dtype": "uint16", "separator": 0, "shards": [shard], "index": index}
    )
    return folder


def record_ids(random: bytes) -> pa.Array:
    """<urn:uuid:…>, as crawls name records, one for each 16 bytes."""
    text = np.empty((len(random) // 16, 47), np.uint8)
    text[:, :10] = np.frombuffer(b"<urn:uuid:", np.uint8)
    text[:, 46] = ord(">")
    digits = np.frombuffer(random.hex().encode(), np.uint8).reshape(-1, 32)
    text[:, [18, 23, 28, 33]] = ord("-")
    places = [i for i in range(10, 46) if i not in (18, 23, 28, 33)]
    text[:, places] = digits
    ends = np.arange(len(text) + 1, dtype=np.int32) * 47
    return pa.StringArray.from_buffers(len(text), pa.py_buffer(ends), pa.py_buffer(text))


def seconds(
    work: Callable[[int], object], times: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median time of one call of work(number)."""
    durations = []
    for number in range(times):
        begin = clock()
        work(number)
        durations.append(clock() - begin)
    return float(np.median(durations))


def reading(folder: Path) -> None:
    """Tokens a second of batch() and of Prefetch, and the waiting."""
    data = TokenData(folder)
    print(f"{int(data.length.sum(dtype=np.int64)):,} tokens, {len(data.length):,} documents, T={SEQ_LEN}")
    print("packing   mask  rows   batch() M tokens/s   of a step   Prefetch M tokens/s   wait")
    for packing in PACKINGS:
        for mask in (False, True):
            for rows in (32, 128, 512):
                loader = Loader(data, SEQ_LEN, rows, packing=packing, mask_documents=mask)
                tokens, steps = rows * SEQ_LEN, max(8, 2048 // rows)
                loader.batch(0)  # lays the epoch out, which --index times
                one = seconds(loader.batch, steps, time.thread_time)
                with Prefetch(loader.batch, 2 * steps) as batches:
                    prefetched = seconds(batches, steps)
                wait = waiting(loader, tokens)
                share = one / (tokens / H100)
                print(
                    f"{packing:9} {'yes' if mask else 'no':4} {rows:5} {tokens / one / 1e6:15.1f} {share:15.2%} "
                    f"{tokens / prefetched / 1e6:18.1f} {wait:11.2%}",
                    flush=True,
                )


def waiting(loader: Loader, tokens: int, steps: int = 8) -> float:
    """Share of the time that a consumer at an H100's pace waits for batches, without the first one."""
    with Prefetch(loader.batch, steps + 1) as batches:
        batches(0)
        begin, before = time.perf_counter(), batches.waited
        for step in range(1, steps + 1):
            time.sleep(tokens / H100)
            batches(step)
        return (batches.waited - before) / (time.perf_counter() - begin)


def indexing(folder: Path) -> None:
    """Opening an index, laying out an epoch, and finding a page: CPU seconds of all threads; memory in GB."""

    def timed(what: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{what:40} {cpu:6.2f} CPU s {wall:7.2f} s  peak {peak():.2f} GB", flush=True)
        return result

    print(f"peak {peak():.2f} GB before")
    data = timed("open the index", lambda: TokenData(folder))
    print(f"{len(data.length):,} documents")
    for packing in PACKINGS:
        loader = timed(f"{packing}: a loader", lambda: Loader(data, SEQ_LEN, 512, packing=packing))  # noqa: B023
        timed(f"{packing}: lay an epoch out", lambda: loader.order.epoch(0))  # noqa: B023
        epoch = loader.order.epoch(0)
        print(
            f"{packing}: {min(1, epoch.length.sum() / (epoch.rows * SEQ_LEN)):.3%} of the places hold a token"
        )
    records = timed("records_of a step", lambda: loader.records_of(3))
    found = timed("steps_that_saw a page, of 1,000", lambda: loader.steps_that_saw(records[0], 1000))
    assert 3 in found


def packing_of(folder: Path) -> None:
    """How full rows are, and how many documents are in more than one."""
    data = TokenData(folder)
    train = data.length[data.documents()]
    print(
        f"{folder}: {len(train):,} documents, median {np.median(train):.0f} tokens, mean {train.mean():.0f}"
    )
    print("packing      T   rows full   documents cut   longer than a row")
    for seq_len in (256, 1024, 2048):
        for packing in PACKINGS:
            share = Loader(data, seq_len, 1, packing=packing).order.packed()
            longer = (train > seq_len).mean()
            print(f"{packing:9} {seq_len:4} {share['full']:11.2%} {share['cut']:15.1%} {longer:19.1%}")


def leaks(folder: Path, run: int = 13) -> None:
    """How much of the held-out documents is in training documents, by runs of 13 tokens (GPT-3's measure)."""
    data = TokenData(folder)

    def runs(document: int) -> np.ndarray:
        tokens = data.tokens(document)[:-1].astype(np.uint64)
        windows = (
            np.lib.stride_tricks.sliding_window_view(tokens, run) if len(tokens) >= run else tokens[:0, None]
        )
        return (windows * np.uint64(0x9E3779B97F4A7C15) ** np.arange(windows.shape[1], dtype=np.uint64)).sum(
            1
        )

    held = data.documents(HELD_OUT)
    trained = np.unique(np.concatenate([runs(d) for d in data.documents()]))
    shares = np.array([np.isin(runs(d), trained).mean() if len(runs(d)) else 0.0 for d in held])
    print(
        f"held out by {data.manifest['split_by']}: {len(held)} documents; share of their runs of {run} tokens that "
        f"training has: mean {shares.mean():.2%}, highest {shares.max():.1%}, above half in {(shares > 0.5).sum()}"
    )


def peak() -> float:
    """Peak memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--index", type=int, metavar="DOCUMENTS")
    parser.add_argument("--shards", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; numpy {np.__version__}, pyarrow {pa.__version__}, "
        f"Python {platform.python_version()}"
    )
    if options.shards:
        packing_of(options.shards)
        leaks(options.shards)
        return 0
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        documents = options.index or options.tokens // 733
        # In another process: its memory is not the loader's.
        if (child := os.fork()) == 0:
            write_synthetic(Path(folder), documents, sparse=bool(options.index))
            os._exit(0)
        os.waitpid(child, 0)
        (indexing if options.index else reading)(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
