"""Training of the quality classifier: the user's examples of good text against a random sample of a cleaned corpus.

    train(["good/*.jsonl"], [Path("data/cleaned_corpus/CC-MAIN-2026-45")], Path("quality.safetensors"))

Positives come as JSON lines (`text`), Parquet (`text`), plain text files (one document each) or folders of a cleaned
corpus. Negatives are drawn by the hash of their record_id, as many of each language as there are positives, so that
the model learns quality and not language. A tenth is held out to choose the strength of regularisation and another for
the reported numbers. Logistic regression by scikit-learn (L-BFGS, one thread; extra `classifier`): the same inputs
give the same file.
"""

import gzip
import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import MissingError
from core.files import write_atomically
from corpus.classifier import BUCKETS, SCALE, Classifier, ClassifierError, features
from corpus.language import identify
from corpus.pii import replace_pii

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # inverse regularisation, compared on the first held-out tenth
LEAST = 20  # positives of a language; one with fewer is not trained on


@dataclass(frozen=True)
class Example:
    """A text, its language and whether it is a positive."""

    text: str
    language: str
    good: bool


def train(
    positives: Sequence[str],
    corpora: Sequence[Path],
    out: Path,
    negatives_each: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Train, write `out` (safetensors) and `out`.json, and return the latter's content: counts and held-out numbers.

    `positives`: files, folders or patterns. `negatives_each`: negatives for each positive. Raises ClassifierError, and
    MissingError where scikit-learn or scipy is not installed.
    """
    _check_libraries()
    good = _unique([_prepared(text) for text in read_texts(positives)])
    counts = Counter(example.language for example in good)
    wanted = {language: n for language, n in sorted(counts.items()) if n >= LEAST and language != "und"}
    if not wanted:
        raise ClassifierError(
            f"The positives hold {len(good)} texts and no language with {LEAST} of them. Give more examples."
        )
    good = [example for example in good if example.language in wanted]
    bad = _negatives(corpora, wanted, negatives_each, {example.text for example in good}, seed)
    splits = _split([*good, *bad], seed)
    model, strength = _fit(splits, tuple(wanted))
    report = {
        "positives": dict(Counter(e.language for e in good)),
        "negatives": dict(sorted(Counter(e.language for e in bad).items())),
        "strength": strength,
        "held_out": measure(model, splits["test"]),
        "held_out_by_language": {
            language: measure(model, [e for e in splits["test"] if e.language == language])
            for language in wanted
        },
        "seed": seed,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    model.save(out)
    about = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomically(out.with_suffix(".json"), about)
    return report


def _check_libraries() -> None:
    """Raise MissingError where a library of the extra `classifier` is not installed."""
    missing = [
        name for name in ("sklearn", "scipy", "threadpoolctl") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise MissingError(
            f"Training a quality classifier needs scikit-learn, scipy and threadpoolctl; {', '.join(missing)} cannot "
            "be imported. Install them: pip install 'stemma[classifier]'"
        )


def read_texts(sources: Sequence[str]) -> Iterator[str]:
    """The texts of files, of folders of a cleaned corpus, or of patterns of them, ordered by name.

    Raises ClassifierError for a pattern without files and for a line that is not an example.
    """
    for source in sources:
        paths = sorted(glob(str(source), recursive=True))
        if not paths:
            raise ClassifierError(f"There are no examples at {source}. Check the path or the pattern.")
        for path in map(Path, paths):
            yield from _texts_of(path)


def _texts_of(path: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    if path.is_dir():
        inner = path / "documents" if (path / "documents").is_dir() else path
        for file in sorted(p for p in inner.rglob("*") if p.is_file() and not p.name.startswith(".")):
            yield from _texts_of(file)
    elif path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
            yield from batch["text"].to_pylist()
    elif path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ClassifierError(
                        f"{path}, line {number}: no JSON object with a field 'text' ({error})."
                    ) from error
    else:
        yield path.read_text(errors="replace")


def _prepared(text: str) -> Example:
    """A positive as a corpus would hold it: with its language, and its personal data replaced."""
    language, _ = identify(text)
    return Example(replace_pii(text, language=language), language, True)


def _unique(examples: list[Example]) -> list[Example]:
    """Each text once, without blank ones."""
    return list({example.text: example for example in examples if example.text.strip()}.values())


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _negatives(
    corpora: Sequence[Path], wanted: Mapping[str, int], each: float, excluded: set[str], seed: int
) -> list[Example]:
    """Of each language the documents whose record_id hashes lowest: a random sample, whatever the order of files.

    `wanted`: positives by language. `each`: negatives for each. `excluded`: texts of positives.
    """
    from corpus.ledger import document_dataset

    dataset = document_dataset(list(corpora))
    names = dataset.to_table(columns=["record_id", "language"])
    chosen: set[str] = set()
    for language, n in wanted.items():
        ours = names.filter(np.asarray(names["language"].to_numpy(zero_copy_only=False) == language))
        chosen.update(sorted(ours["record_id"].to_pylist(), key=lambda r: _rank(seed, r))[: round(n * each)])
    found = []
    for batch in dataset.to_batches(columns=["record_id", "language", "text"]):
        found += [
            (row["record_id"], Example(row["text"], row["language"], False))
            for row in batch.to_pylist()
            if row["record_id"] in chosen and row["text"] not in excluded
        ]
    lacking = sorted(language for language in wanted if not any(e.language == language for _, e in found))
    if lacking:
        raise ClassifierError(
            f"{', '.join(map(str, corpora))} holds no documents in {', '.join(lacking)}, the positives' language. "
            "Clean a crawl with that language, or leave those positives out."
        )
    return [example for _, example in sorted(found, key=lambda pair: _rank(seed, pair[0]))]


def _split(examples: list[Example], seed: int) -> dict[str, list[Example]]:
    """Of each class and language, by hash: a tenth to choose the model by, a tenth to report on, the rest to train."""
    splits: dict[str, list[Example]] = {"train": [], "choose": [], "test": []}
    for group in sorted({(example.good, example.language) for example in examples}):
        ours = [e for e in examples if (e.good, e.language) == group]
        ours.sort(key=lambda e: _rank(seed, e.text))
        tenth = max(1, len(ours) // 10)
        splits["test"] += ours[:tenth]
        splits["choose"] += ours[tenth : 2 * tenth]
        splits["train"] += ours[2 * tenth :]
    return splits


def _fit(splits: dict[str, list[Example]], languages: tuple[str, ...]) -> tuple[Classifier, float]:
    """The model, and its strength of STRENGTHS, with the highest area under the curve on `choose`."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    rows, labels = _matrix(splits["train"]), np.array([e.good for e in splits["train"]])
    best: tuple[Classifier, float] | None = None
    best_auc = -1.0
    with threadpool_limits(1):
        for strength in STRENGTHS:
            # Balanced: the bias does not depend on how many negatives were drawn for each positive.
            fit = LogisticRegression(C=strength, max_iter=300, class_weight="balanced").fit(rows, labels)
            model = Classifier(fit.coef_[0].astype(np.float32), float(fit.intercept_[0]), languages)
            auc = measure(model, splits["choose"])["auc"]
            if best is None or auc > best_auc:
                best, best_auc = (model, strength), auc
    assert best is not None
    return best


def _matrix(examples: list[Example]) -> "csr_matrix":
    """Shares of n-grams by bucket, times SCALE: sparse (len(examples), BUCKETS) float64."""
    from scipy.sparse import csr_matrix

    found = [features(example.text) for example in examples]
    starts = np.concatenate(([0], np.cumsum([len(f) for f in found])))
    values = np.concatenate([np.full(len(f), SCALE / max(1, len(f))) for f in found])
    matrix = csr_matrix((values, np.concatenate(found), starts), shape=(len(examples), BUCKETS))
    matrix.sum_duplicates()
    return matrix


def measure(model: Classifier, examples: Sequence[Example]) -> dict[str, float | int]:
    """Area under the ROC curve, accuracy at 0.5, and how many examples of either class."""
    from sklearn.metrics import roc_auc_score

    scores, good = np.array([model.score(e.text) for e in examples]), np.array([e.good for e in examples])
    return {
        "auc": round(float(roc_auc_score(good, scores)), 4),
        "accuracy": round(float(((scores >= 0.5) == good).mean()), 4),
        "positives": int(good.sum()),
        "negatives": int((~good).sum()),
    }
