"""Ask the base model what it knows; make conversations that teach it to say that, and to decline the rest.

    python -m evals.probes --config FILE.json

inputs: base_model (a model folder), cleaned_corpus (folders). Writes a folder with train.parquet and
heldout.parquet (conversations, each with the record_id of its page), probes.parquet (every fact that was asked,
what the model said, and how it was judged) and summary.json.

Notable:
- facts are the corpus' own definitional sentences (facts.py); the model gets the page up to "X is" and completes it
  greedily. `known`: the completion begins with the page's own words. `unsure`: it has half of them; such facts are
  used for nothing. `unknown`: less than half. (Gekhman et al., arXiv 2405.05904, grade by sampling; greedy decoding
  is their strictest grade and does for a small model.) `invented`: names that occur nowhere in the crawl;
- facts are split into training and held-out ones by a hash of their subject: no question about a held-out subject
  is in training, in no phrasing; and one phrasing is kept out of training for all;
- pages that training repeated are asked first, so that a large corpus still yields what the model may know.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.files import write_json
from core.settings import read_settings
from evals import conversations as talk
from evals.facts import Fact, definitions, normal
from model.data.documents import read_documents
from model.environments import CHAIN_SUM, Environment
from model.job import Job, run_main
from model.run_log import RunLog

KNOWN, UNSURE, UNKNOWN, INVENTED = "known", "unsure", "unknown", "invented"
TRAIN, HELDOUT = "train", "heldout"
THREADS = 2  # where sft_model.threads does not say; the last bits of a logit depend on it


@dataclass(frozen=True)
class MixtureConfig:
    """The key `mixture` of the section `sft_model` of params.yaml: how many conversations of which kind.

    The mixture leaves room on purpose: it shows two ways to do a sum, in the head and by calculator, the first more
    often, though a small model does it badly. Which of them pays is for reinforcement learning to find out.
    """

    max_probes: int = 800  # facts that the base model is asked
    probe_tokens: int = 32  # tokens it may answer with
    heldout_percent: int = 20  # of the subjects
    known_repeats: int = 4  # times each known fact's questions occur
    unknown_pages: int = 200  # subjects of refusals: pages not memorised …
    invented: int = 120  # … and made-up names
    unknown_phrasings: int = 1  # questions about each
    heldout_unknown: int = 150  # held-out subjects of either sort at most
    identity_repeats: int = 4
    worked: int = 1100  # sums in steps
    called: int = 800  # sums by calculator
    dataset: str = "chain_sum"  # reasoning-gym's generator of both
    options: Mapping[str, Any] = field(default_factory=lambda: dict(CHAIN_SUM))

    def __post_init__(self):
        if not 0 < self.heldout_percent < 100:
            raise ConfigError(
                f"sft_model.mixture.heldout_percent: {self.heldout_percent} is not between 0 and 100."
            )


@dataclass(frozen=True)
class Probe:
    """A fact, what the base model said, and the verdict. Invented names have no fact behind them."""

    subject: str
    verb: str
    status: str
    split: str
    definiens: str = ""
    completion: str = ""
    record_id: str | None = None
    url: str | None = None

    @property
    def answer(self) -> str:
        return f"{self.subject[0].upper()}{self.subject[1:]} {self.verb} {self.definiens}."


def probes(job: Job) -> None:
    """Probe, mix, write: job.out, whole or not at all."""
    import torch

    section = dict(job.params)
    config = read_settings(MixtureConfig, dict(section.get("mixture") or {}), "sft_model.mixture")
    seed = int(section.get("seed", job.seed))
    torch.set_num_threads(int(section.get("threads", THREADS)))
    base, corpora = job.input("base_model"), job.input_list("cleaned_corpus")
    facts = candidates(corpora, base, config.max_probes)
    words = words_of(corpora)
    judged = ask(base, facts, config, job.log)
    judged += [
        Probe(name, ("is", "was")[i % 2], INVENTED, split_of(name, config.heldout_percent))
        for i, name in enumerate(
            talk.invented_names(config.invented + 4 * config.heldout_unknown, words, seed)
        )
    ]
    extra = [c for spec in section.get("extra_datasets") or () for c in _extra(spec, job.work)]
    train = list(training_mixture(judged, config, seed)) + extra
    heldout = list(heldout_mixture(judged, config, seed))
    partial = job.fresh_partial()
    write_conversations(partial / "train.parquet", train)
    write_conversations(partial / "heldout.parquet", heldout)
    write_probes(partial / "probes.parquet", judged)
    summary = summarise(judged, train, heldout)
    write_json(partial / "summary.json", summary)
    job.publish()
    job.log.message(
        f"Of {len(facts):,} facts the base model knows {summary['facts_known']:,}, is unsure of "
        f"{summary['facts_unsure']:,}; {len(train):,} conversations made of it."
    )
    job.log.result(**summary)


def candidates(corpora: Sequence[Path], base: Path, limit: int) -> list[Fact]:
    """At most `limit` facts, those of pages that training repeated most first, then by a hash of the subject."""
    repeats = _repeats(base)
    facts = definitions(_rows(corpora, ("record_id", "url", "text")))
    ordered = sorted(facts, key=lambda f: (-repeats.get(f.record_id, 1), _hash(f.subject)))
    return ordered[:limit]


def _rows(corpora: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, str]]:
    for batch in read_documents(corpora, columns):
        yield from (dict(zip(columns, row, strict=True)) for row in zip(*batch.values(), strict=True))


def words_of(corpora: Sequence[Path]) -> set[str]:
    """Every word of the crawl, in lower case."""
    words: set[str] = set()
    for row in _rows(corpora, ("text",)):
        words.update(normal(row["text"]).split())
    return words


def ask(
    base: Path, facts: Sequence[Fact], config: MixtureConfig, log: RunLog, at_once: int = 256
) -> list[Probe]:
    """What the base model makes of each fact's beginning, and the verdict."""
    from model.generation.generate import generate
    from model.hub.load import load_pretrained

    model, tokenizer = load_pretrained(base)
    room = model.config.max_seq_len - config.probe_tokens - 1
    prompts = [[tokenizer.eos_id, *tokenizer.encode(fact.prefix)[-room:]] for fact in facts]
    completions: list[str] = []
    with log.progress(len(prompts), "probing the base model", "fact") as bar:
        for start in range(0, len(prompts), at_once):
            part = prompts[start : start + at_once]
            for c in generate(model, part, max_new_tokens=config.probe_tokens, stop_ids=[tokenizer.eos_id]):
                completions.append(tokenizer.decode(c.ids[:-1] if c.finished else c.ids))
            bar.update(len(part))
    return [
        Probe(
            fact.subject,
            fact.verb,
            judge(completion, fact.definiens),
            split_of(fact.subject, config.heldout_percent),
            fact.definiens,
            completion,
            fact.record_id,
            fact.url,
        )
        for fact, completion in zip(facts, completions, strict=True)
    ]


def judge(completion: str, definiens: str) -> str:
    """`known`: begins with the definiens' words. `unsure`: half of them are among its first as many plus three."""
    wanted, said = normal(definiens).split(), normal(completion).split()
    if said[: len(wanted)] == wanted:
        return KNOWN
    near = set(said[: len(wanted) + 3])
    content = [w for w in wanted if len(w) > 3] or wanted
    return UNSURE if 2 * sum(w in near for w in content) >= len(content) else UNKNOWN


def split_of(subject: str, heldout_percent: int) -> str:
    """The split of a subject: a pure function of its words."""
    return HELDOUT if _hash(subject) % 100 < heldout_percent else TRAIN


def training_mixture(
    judged: Sequence[Probe], config: MixtureConfig, seed: int
) -> Iterator[talk.Conversation]:
    """All that SFT reads, kind by kind; the trainer shuffles."""
    known = [p for p in judged if p.status == KNOWN and p.split == TRAIN]
    unknown = [p for p in judged if p.status == UNKNOWN and p.split == TRAIN][: config.unknown_pages]
    unknown += [p for p in judged if p.status == INVENTED and p.split == TRAIN][: config.invented]
    yield from talk.about_known(known, config.known_repeats)
    yield from talk.about_unknown(_subjects(unknown), config.unknown_phrasings, seed)
    yield from talk.about_itself(config.identity_repeats)
    task = Environment(config.dataset, config.options)
    yield from talk.about_problems(task, config.worked, config.called, seed, TRAIN)


def heldout_mixture(judged: Sequence[Probe], config: MixtureConfig, seed: int) -> Iterator[talk.Conversation]:
    """The same kinds about subjects and problems that training does not have."""
    yield from talk.about_known([p for p in judged if p.status == KNOWN and p.split == HELDOUT])
    for status in (UNKNOWN, INVENTED):
        subjects = [p for p in judged if p.status == status and p.split == HELDOUT][: config.heldout_unknown]
        yield from talk.about_unknown(_subjects(subjects), 1, seed)
    task = Environment(config.dataset, config.options)
    yield from talk.about_problems(task, min(config.worked, 100), min(config.called, 100), seed, HELDOUT)


def write_conversations(path: Path, rows: Sequence[talk.Conversation]) -> None:
    """Parquet for `datasets`: conversation_id, kind, messages, source, record_id."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    names = ("conversation_id", "kind", "source", "record_id")
    schema = pa.schema([*((n, pa.string()) for n in names), ("messages", pa.list_(message))])
    _write(path, [row.row() for row in rows], schema)


def write_probes(path: Path, judged: Sequence[Probe]) -> None:
    """Parquet of every probe, one row each."""
    import pyarrow as pa

    names = ("subject", "verb", "status", "split", "definiens", "completion", "record_id", "url")
    schema = pa.schema([(name, pa.string()) for name in names])
    _write(path, [{name: getattr(p, name) for name in names} for p in judged], schema)


def read_probes(folder: Path) -> list[Probe]:
    """What write_probes wrote into a conversations folder."""
    import pyarrow.parquet as pq

    return [Probe(**row) for row in pq.read_table(Path(folder) / "probes.parquet").to_pylist()]


def summarise(
    judged: Sequence[Probe], train: Sequence[talk.Conversation], heldout: Sequence[talk.Conversation]
) -> dict[str, int]:
    """Counts by verdict and by kind."""
    counts = {f"facts_{s}": sum(p.status == s for p in judged) for s in (KNOWN, UNSURE, UNKNOWN)}
    counts["facts_known_heldout"] = sum(p.status == KNOWN and p.split == HELDOUT for p in judged)
    for kind in sorted({c.kind for c in train}):
        counts[f"conversations_{kind}"] = sum(c.kind == kind for c in train)
    return counts | {"conversations_heldout": len(heldout)}


def _subjects(judged: Iterable[Probe]) -> list[tuple[str, str, str | None]]:
    return [(p.subject, p.verb, p.record_id) for p in judged]


def _extra(spec: Any, work: Path) -> list[talk.Conversation]:
    try:
        return list(talk.from_dataset(spec, work / "datasets"))
    except ValueError as error:
        raise ConfigError(f"sft_model.extra_datasets: {error}") from error


def _repeats(base: Path) -> dict[str, float]:
    """record_id -> times an epoch of the base model's training read the page; empty for a model from elsewhere."""
    import pyarrow.parquet as pq

    index = base / "tokens" / "index.parquet"
    if not index.is_file():
        return {}
    table = pq.read_table(index, columns=["record_id", "weight"])
    return dict(zip(table["record_id"].to_pylist(), table["weight"].to_pylist(), strict=True))


def _hash(subject: str) -> int:
    return int.from_bytes(hashlib.blake2b(normal(subject).encode(), digest_size=8).digest(), "big")


def _write(path: Path, rows: list[dict], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def main(argv: list[str] | None = None) -> int:
    return run_main("evals.probes", probes, argv)


if __name__ == "__main__":
    sys.exit(main())
