"""Documents to token shards, and an index of their positions.

A folder of shards holds shard-00000.bin … (flat little-endian uint16, or uint32 for vocabularies that need it;
each document's tokens, then the separator <|endoftext|>), index.parquet (one row a document) and manifest.json
(hashes of all of it; its own sha256 identifies the data everywhere). Notable:

- the order is that of the corpus, so the same documents give the same bytes; the loader shuffles;
- the held-out split is a pure function of the host's name, so that near-duplicates on one host are never on both
  sides. With few hosts, or one that has much of the text, that would hold out nothing or far too much:
  then it is a function of the document's text, as `manifest["split_by"]` and a message report;
- a held-out document of which training documents repeat more than half is a `near_copy` (near_copies.py): neither
  trained on nor measured;
- a document is stored once and has a `weight`, how many times an epoch reads it: that of its host, else of its crawl,
  else 1. Hosts named in `upsample` are never held out; `weights` do not affect the split;
- memory is a few numbers a document: the index is first written to a draft on disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.errors import DataError
from core.files import write_json
from core.hashing import file_sha256
from model.data.config import HELD_OUT, NEAR_COPY, TRAIN, SplitConfig
from model.data.documents import document_files, left_out, read_documents
from model.data.near_copies import repeated
from model.run_log import RunLog

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer

REPEATED = 0.5  # share of a held-out document; above, its score would measure what the model remembers
SHARD_TOKENS = 2**27  # 256 MiB of uint16: few files, each small enough to move
ENCODE_AT_ONCE = 2000  # documents; enough for all cores of the tokenizer
MIN_HOSTS = 20  # with fewer, a share of the hosts is too coarse a share of the text
MAX_SHARE_ERROR = 2.0  # factor between the share obtained and requested, above which hosts are not used
COLUMNS = ["record_id", "crawl", "host", "text"]

INDEX_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("crawl", pa.string()),
        ("host", pa.string()),
        ("shard", pa.int32()),
        ("start", pa.int64()),  # tokens from the shard's beginning
        ("length", pa.int64()),  # tokens, including the separator after the document
        ("n_bytes", pa.int64()),  # of the document as UTF-8
        ("split", pa.string()),  # train, held_out or near_copy
        ("weight", pa.float64()),  # times an epoch reads it, on average over epochs
    ]
)
DRAFT_SCHEMA = pa.schema([*list(INDEX_SCHEMA)[:7], ("text_share", pa.float64())])  # share_of its text


def write_shards(
    corpora: Sequence[Path],
    tokenizer: Tokenizer,
    out: Path,
    split: SplitConfig,
    log: RunLog,
    tokenizer_hash: str = "",
    training_set: Path | None = None,
) -> dict[str, Any]:
    """Tokenise the documents of the cleaned corpora into `out` (must not exist). Returns its manifest.

    `training_set` names the documents to leave out. The folder appears by rename when it is complete. Raises
    DataError if there is no document.
    """
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = _Writer(partial, np.uint16 if tokenizer.vocab_size < 65_535 else np.uint32, tokenizer.eos_id)
    total = sum(pq.read_metadata(file).num_rows for file in document_files(corpora))
    total -= len(left_out(training_set))
    if total <= 0:
        raise DataError(
            f"{', '.join(map(str, corpora))}: no documents to train on. The corpus' report shows what removed them."
        )
    with log.progress(total, "tokenising", "documents") as bar:
        for rows in read_documents(corpora, COLUMNS, training_set, ENCODE_AT_ONCE):
            writer.add(rows, tokenizer.encode_arrays(rows["text"]))
            bar.update(len(rows["text"]))
    manifest = writer.finish(split, log) | {"tokenizer_sha256": tokenizer_hash}
    write_json(partial / "manifest.json", manifest)
    partial.rename(out)
    return manifest


def share_of(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, uniform over keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def split_documents(
    hosts: Sequence[str] | pa.ChunkedArray, text_shares: np.ndarray, sizes: np.ndarray, config: SplitConfig
) -> tuple[np.ndarray, str]:
    """Which documents are held out (bool), and by which hash: of "host", "document", or "nothing".

    hosts, text_shares (share_of each text) and sizes (bytes): one entry a document, in any order, which does not
    change the result for a document.
    """
    names, host = _encoded(hosts)
    chosen = frozenset(config.upsample or {})
    host_is_free = np.array([name not in chosen for name in names], bool)
    free = host_is_free[host]
    if not config.held_out or not free.any():
        return np.zeros(len(host), bool), "nothing"
    shares = np.array([share_of(f"host {name.removeprefix('www.')}") for name in names])
    held = free & (shares < config.held_out)[host]
    share = sizes[held].sum() / max(1, sizes[free].sum())
    enough = host_is_free.sum() >= MIN_HOSTS
    if enough and config.held_out / MAX_SHARE_ERROR <= share <= config.held_out * MAX_SHARE_ERROR:
        return held, "host"
    held = free & (text_shares < config.held_out)
    if not held.any():  # very few documents: hold out one, if another is left
        held = free & (text_shares == text_shares[free].min())
        if held.all():
            return np.zeros(len(host), bool), "nothing"
    return held, "document"


def weigh_documents(
    hosts: Sequence[str] | pa.ChunkedArray, crawls: Sequence[str] | pa.ChunkedArray, config: SplitConfig
) -> tuple[np.ndarray, list[str]]:
    """The weight of each document (float64): its host's, else its crawl's, else 1; and names without a document."""
    wanted = dict(config.weights or {}) | dict(config.upsample or {})
    host_names, host = _encoded(hosts)
    crawl_names, crawl = _encoded(crawls)
    of_host = np.array([wanted.get(name, math.nan) for name in host_names], float)[host]
    of_crawl = np.array([wanted.get(name, 1.0) for name in crawl_names], float)[crawl]
    missing = sorted(set(wanted) - set(host_names) - set(crawl_names))
    return np.where(np.isnan(of_host), of_crawl, of_host), missing


def _encoded(values: Sequence[str] | pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The distinct values, and for each entry the index of its value."""
    if not isinstance(values, pa.ChunkedArray):
        values = pa.chunked_array([pa.array(values, pa.string())])
    encoded = values.dictionary_encode().unify_dictionaries().combine_chunks()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def manifest_hash(folder: Path) -> str:
    """The identity of the data: sha256 of its manifest, which holds the sha256 of the rest."""
    return file_sha256(Path(folder) / "manifest.json")


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a folder of shards."""
    return json.loads((Path(folder) / "manifest.json").read_text("utf-8"))


def check_shards(folder: Path) -> None:
    """Hash shards and index again. Raises DataError with the first file that differs from the manifest."""
    manifest = read_manifest(folder)
    for entry in [*manifest["shards"], manifest["index"]]:
        path = Path(folder) / entry["file"]
        if not path.is_file() or file_sha256(path) != entry["sha256"]:
            raise DataError(
                f"{path}: missing or altered since it was written. Remove {folder} and run again."
            )


class _Writer:
    """Appends documents to the current shard and their rows to a draft of the index, which `finish` completes."""

    def __init__(self, folder: Path, dtype: type, separator: int):
        self.folder, self.dtype, self.separator = folder, np.dtype(dtype).newbyteorder("<"), separator
        self.shards: list[dict[str, Any]] = []
        self.used = 0  # tokens in the current shard
        self.file: BufferedWriter | None = None
        self._draft_path = folder / "index.draft"
        self._draft = pa.ipc.new_file(str(self._draft_path), DRAFT_SCHEMA)

    def add(self, documents: dict[str, list[Any]], encoded: list[np.ndarray]) -> None:
        """Append documents (column -> values) with their token ids."""
        rows: dict[str, list[Any]] = {name: documents[name] for name in ("record_id", "crawl", "host")}
        rows |= {name: [] for name in DRAFT_SCHEMA.names[3:]}
        for text, ids in zip(documents["text"], encoded, strict=True):
            file = self.file
            if file is None or self.used >= SHARD_TOKENS:
                file = self._next_shard()
            tokens = np.append(ids, self.separator).astype(self.dtype)
            file.write(tokens.tobytes())
            data = text.encode()
            share = share_of(f"text {hashlib.sha256(data).hexdigest()}")
            row = (len(self.shards) - 1, self.used, len(tokens), len(data), share)
            for name, value in zip(DRAFT_SCHEMA.names[3:], row, strict=True):
                rows[name].append(value)
            self.used += len(tokens)
        self._draft.write_batch(pa.RecordBatch.from_pydict(rows, schema=DRAFT_SCHEMA))

    def finish(self, config: SplitConfig, log: RunLog) -> dict[str, Any]:
        """Close the last shard, decide split and weights, write the index. The manifest, without the tokenizer."""
        self._close_shard()
        self._draft.close()
        with pa.memory_map(str(self._draft_path)) as mapped:
            draft = pa.ipc.open_file(mapped).read_all()
            found = self._write_index(draft, config, log)
            del draft
        self._draft_path.unlink()
        index = {"file": "index.parquet", "sha256": file_sha256(self.folder / "index.parquet")}
        return {
            "dtype": self.dtype.name,
            "separator": self.separator,
            "shards": self.shards,
            "index": index,
        } | found

    def _write_index(self, draft: pa.Table, config: SplitConfig, log: RunLog) -> dict[str, Any]:
        sizes, tokens = draft["n_bytes"].to_numpy(), draft["length"].to_numpy()
        held, split_by = split_documents(draft["host"], draft["text_share"].to_numpy(), sizes, config)
        if split_by == "document":
            log.message(
                f"{pc.count_distinct(draft['host']).as_py()} hosts are too few, or too unequal in size, to hold "
                "some of them out: documents are held out by a hash of their text instead."
            )
        weight, missing = weigh_documents(draft["host"], draft["crawl"], config)
        for name in missing:
            log.message(f"upsample, weights: no document is from {name}.")
        copied = self._near_copies(draft, held, log)
        held &= ~copied
        split = pc.if_else(pa.array(held), HELD_OUT, pc.if_else(pa.array(copied), NEAR_COPY, TRAIN))
        index = draft.drop_columns("text_share").append_column("split", split)
        index = index.append_column("weight", pa.array(weight))
        pq.write_table(index.cast(INDEX_SCHEMA), self.folder / "index.parquet", compression="zstd")
        parts = {TRAIN: ~held & ~copied, HELD_OUT: held, NEAR_COPY: copied}
        return {
            "split_by": split_by,
            "documents": {name: int(part.sum()) for name, part in parts.items()},
            "tokens": {name: int(tokens[part].sum()) for name, part in parts.items()},
            "bytes": {name: int(sizes[part].sum()) for name, part in parts.items()},
        }

    def _near_copies(self, draft: pa.Table, held: np.ndarray, log: RunLog) -> np.ndarray:
        """Which held-out documents (bool) are repeated by training documents."""
        files = [self.folder / shard["file"] for shard in self.shards]
        tokens = [np.asarray(np.memmap(file, self.dtype, "r")) for file in files]
        place = (draft["shard"].to_numpy(), draft["start"].to_numpy())
        copied = repeated(tokens, self.separator, *place, held) > REPEATED
        if copied.any():
            log.message(
                f"{copied.sum():,} of {held.sum():,} held-out documents have more than half of their text in documents "
                "to train on: they are neither trained on nor measured (split near_copy in tokens/index.parquet)."
            )
        return copied

    def _next_shard(self) -> BufferedWriter:
        self._close_shard()
        name = f"shard-{len(self.shards):05d}.bin"
        self.shards.append({"file": name})
        self.file = open(self.folder / name, "wb")  # noqa: SIM115 - closed by _close_shard
        self.used = 0
        return self.file

    def _close_shard(self) -> None:
        if self.file is not None:
            self.file.close()
            self.shards[-1] |= {"tokens": self.used, "sha256": file_sha256(Path(self.file.name))}
