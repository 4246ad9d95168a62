"""Documents to token shards, and a record of where each one lies.

A folder of shards holds shard-00000.bin … (flat little-endian uint16, or uint32 for vocabularies that need it;
each document's tokens, then the separator <|endoftext|>), index.parquet (one row a document) and manifest.json
(hashes of it all; its own sha256 names the data everywhere). Notable:

- the order is that of the corpus, so the same documents give the same bytes; shuffling is the loader's;
- the held-out split is a pure function of the host's name, so near-copies, which live on one host, never stand on
  both sides. With few hosts, or one that holds much of the text, that would hold out nothing or far too much:
  then it is a function of the document's text, and `manifest["split_by"]` and a message say so;
- hosts named in `upsample` are never held out; their documents carry a `repeat`, and are stored once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.checkpoint import file_hash
from model.documents import document_files, left_out, read_documents
from model.run_log import ConfigError, Refusal, RunLog, write_json

TRAIN, HELD_OUT = "train", "held_out"
SHARD_TOKENS = 2**27  # 256 MiB of uint16: big enough to be few, small enough to move
ENCODE_AT_ONCE = 2000  # documents; enough for all cores of the tokenizer
MIN_HOSTS = 20  # fewer, and a share of the hosts is too coarse a share of the text
FAR_OFF = 2.0  # times the share that was asked for: then hosts are no good measure of it
COLUMNS = ["record_id", "crawl", "host", "text"]

INDEX_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("crawl", pa.string()),
        ("host", pa.string()),
        ("shard", pa.int32()),
        ("start", pa.int64()),  # tokens from the shard's beginning
        ("length", pa.int64()),  # tokens, the separator after the document included
        ("n_bytes", pa.int64()),  # of the document as UTF-8
        ("split", pa.string()),  # train or held_out
        ("repeat", pa.int32()),  # times an epoch reads it
    ]
)


@dataclass(frozen=True)
class SplitConfig:
    """How documents are shared out. upsample: host -> times an epoch reads its documents."""

    held_out: float = 0.05
    upsample: Mapping[str, int] | None = None

    def __post_init__(self):
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out: {self.held_out} is a share of the documents, from 0 to below 1.")
        for host, times in (self.upsample or {}).items():
            if not isinstance(times, int) or times < 1:
                raise ConfigError(f"upsample: {host}: {times} is not a whole number of times, 1 or more.")


def write_shards(
    corpora: Sequence[Path],
    tokenizer,
    out: Path,
    split: SplitConfig,
    log: RunLog,
    tokenizer_hash: str = "",
    training_set: Path | None = None,
) -> dict:
    """Tokenise the documents of the cleaned corpora into `out` (must not exist); its manifest.

    `training_set` names those that are left out. The folder appears by rename when it is complete. Raises Refusal
    if there is no document.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = _Writer(partial, np.uint16 if tokenizer.vocab_size < 65_535 else np.uint32, tokenizer.eos_id)
    total = sum(pq.read_metadata(file).num_rows for file in document_files(corpora))
    total -= len(left_out(training_set))
    if total <= 0:
        raise Refusal(
            f"{', '.join(map(str, corpora))}: no documents to train on. Look at the corpus' funnel."
        )
    with log.progress(total, "tokenising", "documents") as bar:
        for rows in read_documents(corpora, COLUMNS, training_set, ENCODE_AT_ONCE):
            writer.add(rows, tokenizer.encode_batch(rows["text"]))
            bar.update(len(rows["text"]))
    manifest = writer.finish(split, log) | {"tokenizer_sha256": tokenizer_hash}
    write_json(partial / "manifest.json", manifest)
    partial.rename(out)
    return manifest


def share_of(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, evenly spread over keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split_documents(
    hosts: Sequence[str], texts: Sequence[str], sizes: np.ndarray, config: SplitConfig
) -> tuple[np.ndarray, str]:
    """Which documents are held out (bool), and by what: "host", "document", or "nothing".

    hosts, texts (a hash of each text) and sizes (bytes) are the documents' in any order: the answer for one does
    not depend on it.
    """
    chosen = frozenset(config.upsample or {})
    free = np.array([host not in chosen for host in hosts])
    if not config.held_out or not free.any():
        return np.zeros(len(hosts), bool), "nothing"
    by_host = {host: share_of(f"host {host.removeprefix('www.')}") < config.held_out for host in set(hosts)}
    held = free & np.array([by_host[host] for host in hosts])
    share = sizes[held].sum() / max(1, sizes[free].sum())
    enough = len({host for host in hosts if host not in chosen}) >= MIN_HOSTS
    if enough and config.held_out / FAR_OFF <= share <= config.held_out * FAR_OFF:
        return held, "host"
    shares = np.array([share_of(f"text {text}") for text in texts])
    held = free & (shares < config.held_out)
    if not held.any():  # a handful of documents: one is held out all the same, if another is left
        held = free & (shares == shares[free].min())
        if held.all():
            return np.zeros(len(hosts), bool), "nothing"
    return held, "document"


def manifest_hash(folder: Path) -> str:
    """The name of the data: sha256 of its manifest, which holds the sha256 of the rest."""
    return file_hash(Path(folder) / "manifest.json")


def read_manifest(folder: Path) -> dict:
    return json.loads((Path(folder) / "manifest.json").read_text("utf-8"))


def check_shards(folder: Path) -> None:
    """Re-hash shards and index; raises Refusal that names the first file that is not as the manifest says."""
    manifest = read_manifest(folder)
    for entry in [*manifest["shards"], manifest["index"]]:
        path = Path(folder) / entry["file"]
        if not path.is_file() or file_hash(path) != entry["sha256"]:
            raise Refusal(f"{path}: missing or altered since it was written. Remove {folder} and run again.")


class _Writer:
    """Appends documents to the current shard and remembers the index."""

    def __init__(self, folder: Path, dtype: type, separator: int):
        self.folder, self.dtype, self.separator = folder, np.dtype(dtype).newbyteorder("<"), separator
        self.rows: dict[str, list] = {name: [] for name in (*INDEX_SCHEMA.names[:7], "text_hash")}
        self.shards: list[dict] = []
        self.used = 0  # tokens in the current shard
        self.file = None

    def add(self, documents: dict[str, list], encoded: list[list[int]]) -> None:
        for i, ids in enumerate(encoded):
            if self.file is None or self.used >= SHARD_TOKENS:
                self._next_shard()
            tokens = np.array([*ids, self.separator], dtype=self.dtype)
            self.file.write(tokens.tobytes())
            text = documents["text"][i].encode()
            row = [documents[name][i] for name in ("record_id", "crawl", "host")]
            row += [len(self.shards) - 1, self.used, len(tokens), len(text), hashlib.sha256(text).hexdigest()]
            for column, value in zip(self.rows.values(), row, strict=True):
                column.append(value)
            self.used += len(tokens)

    def finish(self, config: SplitConfig, log: RunLog) -> dict:
        """Close the last shard, decide the split, write the index; the manifest but for the tokenizer's hash."""
        self._close_shard()
        hashes, sizes = self.rows.pop("text_hash"), np.array(self.rows["n_bytes"])
        held, split_by = split_documents(self.rows["host"], hashes, sizes, config)
        if split_by == "document":
            log.message(
                f"{len(set(self.rows['host']))} hosts are too few, or too unequal, to hold some of them out: "
                "documents are held out by a hash of their text instead."
            )
        upsample = config.upsample or {}
        self.rows["split"] = [HELD_OUT if h else TRAIN for h in held]
        self.rows["repeat"] = [upsample.get(host, 1) for host in self.rows["host"]]
        for host in sorted(set(upsample) - set(self.rows["host"])):
            log.message(f"upsample: no document is from {host}.")
        table = pa.table(self.rows, schema=INDEX_SCHEMA)
        pq.write_table(table, self.folder / "index.parquet", compression="zstd")
        tokens = np.array(self.rows["length"])
        return {
            "dtype": self.dtype.name,
            "separator": self.separator,
            "shards": self.shards,
            "index": {"file": "index.parquet", "sha256": file_hash(self.folder / "index.parquet")},
            "split_by": split_by,
            "documents": {TRAIN: int((~held).sum()), HELD_OUT: int(held.sum())},
            "tokens": {TRAIN: int(tokens[~held].sum()), HELD_OUT: int(tokens[held].sum())},
            "bytes": {TRAIN: int(sizes[~held].sum()), HELD_OUT: int(sizes[held].sum())},
        }

    def _next_shard(self) -> None:
        self._close_shard()
        name = f"shard-{len(self.shards):05d}.bin"
        self.shards.append({"file": name})
        self.file = open(self.folder / name, "wb")  # noqa: SIM115 - closed by _close_shard
        self.used = 0

    def _close_shard(self) -> None:
        if self.file is not None:
            self.file.close()
            self.shards[-1] |= {"tokens": self.used, "sha256": file_hash(Path(self.file.name))}
