"""Does a text give away an evaluation? Shared runs of words between training documents and evaluation sets.

The measure is that of Tülu 3 (Lambert et al., arXiv 2411.15124, section 3.2): runs of 8 words in common; a text
overlaps with an example where one document covers more than half of the example's words by such runs. Words are
compared in lower case and without punctuation. Examples shorter than a run are searched for whole and with their signs,
which in "What is 8 - 0 - 1?" make the question; those of fewer than 5 words ("2 + 2 =") occur everywhere and prove
nothing: they are counted, not searched for.

    exclude_overlaps(corpora, examples, config, out)   before training: the documents left out, as a ledger
    describe_overlaps(texts, training_set, config)     after it: the same search in what was really read
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpus.words import Words, rolling_hash
from evals.decontamination_config import MIN_WORDS, DecontaminationConfig
from evals.sets import Example

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Row = dict[str, Any]  # of MATCH_SCHEMA or of the ledger
STAGE, RULE = "decontamination", "eval_overlap"
EXAMPLE_SCHEMA = pa.schema(
    [("eval_set", pa.string()), ("number", pa.int64()), ("column", pa.string()), ("text", pa.string())]
)
MATCH_SCHEMA = pa.schema(
    [
        ("crawl", pa.string()),
        ("record_id", pa.string()),
        ("url", pa.string()),
        ("eval_set", pa.string()),
        ("example", pa.string()),
        ("share", pa.float64()),  # of the example's words that the document covers
    ]
)


@dataclass(frozen=True, slots=True)
class Match:
    """An example, and the share of its words that one text covers."""

    example: Example
    share: float


class OverlapIndex:
    """Finds examples in texts. Memory: some 40 bytes a word of the evaluation sets."""

    def __init__(self, examples: Iterable[Example], ngram: int = 8, share: float = 0.5):
        self.ngram, self.share = ngram, share
        self.examples: list[Example] = []
        self.too_short: list[Example] = []
        # Hash of the first words -> examples that are searched for whole, with all their words.
        self.whole: dict[int, list[tuple[Hashes, Example]]] = defaultdict(list)
        self.n_words: list[int] = []
        runs: list[Hashes] = []
        for example in examples:
            words = Words.of(example.text)
            if words.n_words < MIN_WORDS:
                self.too_short.append(example)
            elif words.n_words < ngram:
                tokens = words.folded_tokens
                self.whole[int(rolling_hash(tokens[:MIN_WORDS], MIN_WORDS)[0])].append((tokens, example))
            else:
                runs.append(rolling_hash(words.folded, ngram))
                self.examples.append(example)
                self.n_words.append(words.n_words)
        self.starts = np.array(sorted(self.whole), dtype=np.uint64)
        self.hashes, self.owners, self.positions = _sorted_runs(runs)

    def find(self, text: str) -> list[Match]:
        """The examples that a text covers by more than `share`, most covered first."""
        words = Words.of(text)
        matches = [*self._whole(words.folded_tokens), *self._covered(words.folded)]
        return sorted(matches, key=lambda match: (-match.share, match.example.name))

    def _covered(self, words: Hashes) -> Iterator[Match]:
        """Examples of which the words' runs cover more than `share`."""
        runs = rolling_hash(words, self.ngram)
        first, last = np.searchsorted(self.hashes, runs, "left"), np.searchsorted(self.hashes, runs, "right")
        covered: dict[int, set[int]] = defaultdict(set)
        for run in np.flatnonzero(first < last):
            for at in range(first[run], last[run]):
                position = int(self.positions[at])
                covered[int(self.owners[at])].update(range(position, position + self.ngram))
        for owner, positions in covered.items():
            if (share := len(positions) / self.n_words[owner]) > self.share:
                yield Match(self.examples[owner], round(share, 6))

    def _whole(self, tokens: Hashes) -> Iterator[Match]:
        """Short examples that occur with all their words and signs."""
        starts = rolling_hash(tokens, MIN_WORDS)
        seen: set[str] = set()
        for at in np.flatnonzero(np.isin(starts, self.starts)):
            for wanted, example in self.whole[int(starts[at])]:
                if np.array_equal(tokens[at : at + len(wanted)], wanted) and example.name not in seen:
                    seen.add(example.name)
                    yield Match(example, 1.0)


def _sorted_runs(runs: Sequence[Hashes]) -> tuple[Hashes, Integers, Integers]:
    """(hash, index of the example, position in it in words) of every run, sorted by hash: each (R,)."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *runs])
    owners = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    positions = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(run)) for run in runs)])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], owners[order], positions[order]


def exclude_overlaps(
    corpora: Sequence[Path],
    examples: Sequence[Example],
    config: DecontaminationConfig,
    out: Path,
    workers: int,
) -> dict[str, Any]:
    """Write what must not be trained on: out/ledger/eval_overlap.parquet (rows of corpus.ledger), matches.parquet
    (which document covers which example) and examples.parquet (what was searched for); return the counts.

    Documents that out/ledger/ leaves out already are not counted again. `workers`: processes, 0 for none.
    """
    from corpus.engines.pool import run_tasks
    from model.data.documents import document_files, left_out

    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"eval_set": e.eval_set, "number": e.number, "column": e.column, "text": e.text} for e in examples
    ]
    pq.write_table(pa.Table.from_pylist(rows, EXAMPLE_SCHEMA), out / "examples.parquet", compression="zstd")
    unwanted = left_out(out)
    tasks = [
        ScanTask(file, out / "examples.parquet", config.ngram, config.share)
        for file in document_files(corpora)
    ]
    parts: list[list[Row]] = [[] for _ in tasks]
    for index, part in run_tasks(scan_file, tasks, workers if len(tasks) > 1 else 0):
        parts[index] = part
    matches = [m for part in parts for m in part if (m["crawl"], m["record_id"]) not in unwanted]
    pq.write_table(pa.Table.from_pylist(matches, MATCH_SCHEMA), out / "matches.parquet", compression="zstd")
    _write_ledger(corpora, matches, config, out / "ledger" / "eval_overlap.parquet")
    return summarise(_index(out / "examples.parquet", config.ngram, config.share), matches)


@dataclass(frozen=True)
class ScanTask:
    """One file of documents, and what to search for in it."""

    file: Path
    examples: Path
    ngram: int
    share: float


def scan_file(task: ScanTask, progress: Callable[[int], None] | None = None) -> list[Row]:
    """Rows of MATCH_SCHEMA for one documents file. `progress` is what engines pass; a file is one step."""
    index = _index(task.examples, task.ngram, task.share)
    found = []
    for batch in pq.ParquetFile(task.file).iter_batches(columns=["crawl", "record_id", "url", "text"]):
        for row in batch.to_pylist():
            text = row.pop("text")
            for match in index.find(text):
                example = {"eval_set": match.example.eval_set, "example": match.example.name}
                found.append(row | example | {"share": match.share})
    return found


def read_examples(path: Path) -> list[Example]:
    """The examples.parquet of a training set."""
    return [Example(**row) for row in pq.read_table(path).to_pylist()]


def _index(examples: Path, ngram: int, share: float) -> OverlapIndex:
    """One index for all files that a worker scans: building it takes longer than scanning some."""
    return _cached_index(examples, examples.stat().st_mtime_ns, ngram, share)


@lru_cache(maxsize=1)
def _cached_index(examples: Path, modified_ns: int, ngram: int, share: float) -> OverlapIndex:
    return OverlapIndex(read_examples(examples), ngram, share)


def _write_ledger(
    corpora: Sequence[Path], matches: Sequence[Row], config: DecontaminationConfig, path: Path
) -> None:
    """The cleaned corpora's ledger rows of the documents that matched, now dropped, with the closest example."""
    from corpus.ledger import DROPPED, LEDGER_SCHEMA, ledger_dataset, write_parquet

    closest: dict[tuple[str, str], Row] = {}
    for match in matches:
        closest.setdefault((match["crawl"], match["record_id"]), match)
    wanted = pa.array(sorted({record_id for _, record_id in closest}), pa.string())
    rows = []
    for corpus in sorted(corpora, key=lambda c: c.name):
        table = ledger_dataset(corpus).to_table(filter=pc.field("record_id").isin(wanted))
        for row in table.to_pylist():
            example = closest.get((row["crawl"], row["record_id"]))
            if example and row["outcome"] != DROPPED:
                why = {"value": example["share"], "threshold": config.share, "detail": example["example"]}
                rows.append(row | {"outcome": DROPPED, "stage": STAGE, "rule": RULE} | why)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(rows, LEDGER_SCHEMA, path)


def summarise(index: OverlapIndex, matches: Sequence[Row]) -> dict[str, Any]:
    """Per evaluation set: texts searched for, texts too short for it, texts found, documents that hold them."""
    searched = [*index.examples, *(e for found in index.whole.values() for _, e in found)]
    sets = sorted({e.eval_set for e in (*searched, *index.too_short)})

    def counts(name: str) -> dict[str, int]:
        of_set = [m for m in matches if m["eval_set"] == name]
        return {
            "searched": sum(e.eval_set == name for e in searched),
            "too_short": sum(e.eval_set == name for e in index.too_short),
            "found": len({m["example"] for m in of_set}),
            "documents": len({(m["crawl"], m["record_id"]) for m in of_set}),
        }

    documents = len({(m["crawl"], m["record_id"]) for m in matches})
    return {"documents": documents, "eval_sets": {name: counts(name) for name in sets}}


def describe_overlaps(
    texts: Iterable[tuple[str, str]], training_set: Path, config: DecontaminationConfig
) -> Iterator[str]:
    """A sentence for each (name, text) that covers an example of the training set's evaluation sets."""
    index = OverlapIndex(read_examples(training_set / "examples.parquet"), config.ngram, config.share)
    for name, text in texts:
        for match in index.find(text)[:1]:
            yield f"{name} covers {match.share:.0%} of {match.example.name}"


def conversation_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """(number of the conversation, the text of all its messages) of a conversations/train.parquet."""
    table = pq.read_table(folder / "train.parquet", columns=["messages"])
    for number, row in enumerate(table["messages"].to_pylist()):
        yield f"conversation {number}", "\n".join(message["content"] or "" for message in row)
