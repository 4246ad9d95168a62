"""Ask the base model what it knows; make conversations that train it to answer that, and to decline the rest.

    python -m evals.probes --config FILE.json

inputs: base_model (a model folder), cleaned_corpus (folders). Writes a folder with train.parquet and heldout.parquet
(conversations, each with the record_id of its page), probes.parquet (every fact that was asked, what the model
answered, and its status) and summary.json.

Notable:
- facts are the corpus' own definitional sentences (facts.py); the model gets the page up to "X is" and completes it
  greedily. `known`: the completion begins with the page's own words. `unsure`: it has half of them; such facts are
  used for nothing. `unknown`: less than half. (Gekhman et al., arXiv 2405.05904, grade by sampling; greedy decoding
  is their strictest grade and is enough for a small model.) `invented`: names that occur nowhere in the crawl;
- facts are split into training and held-out ones by a hash of their subject: no question about a held-out subject is
  in training, in any phrasing; and one phrasing is never used in training at all;
- pages that training repeated are asked first, so that a large corpus still yields what the model may know.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.files import write_json
from core.settings import read_settings
from evals import conversations
from evals.conversations import Conversation
from evals.facts import Fact, definitions, normalize
from evals.mixture_config import MixtureConfig
from evals.probed_facts import (
    HELDOUT,
    INVENTED,
    KNOWN,
    TRAIN,
    UNKNOWN,
    UNSURE,
    Probe,
    write_probes,
    write_rows,
)
from model.data.documents import read_documents
from model.environments import Environment
from model.job import Job, run_main
from model.run_log import RunLog

THREADS = 2  # default of sft_model.threads; the last bits of a logit depend on it


def build_conversations(job: Job) -> None:
    """Probe, mix, write: job.out, whole or not at all."""
    import torch

    section = dict(job.params)
    config = read_settings(MixtureConfig, section.get("mixture"), "sft_model.mixture")
    seed = int(section.get("seed", job.seed))
    torch.set_num_threads(int(section.get("threads", THREADS)))
    base, corpora = job.input("base_model"), job.input_list("cleaned_corpus")
    facts = select_facts(corpora, base, config.max_probes)
    words = words_of(corpora)
    probes = [*probe_base_model(base, facts, config, job.log), *invented_probes(words, config, seed)]
    extra = [c for spec in section.get("extra_datasets") or () for c in _extra(spec, job.work)]
    train = [*training_mixture(probes, config, seed), *extra]
    heldout = list(heldout_mixture(probes, config, seed))
    partial = job.fresh_partial()
    write_conversations(partial / "train.parquet", train)
    write_conversations(partial / "heldout.parquet", heldout)
    write_probes(partial / "probes.parquet", probes)
    summary = summarise(probes, train, heldout)
    write_json(partial / "summary.json", summary)
    job.publish()
    job.log.message(
        f"Of {len(facts):,} facts the base model knows {summary['facts_known']:,} and is unsure of "
        f"{summary['facts_unsure']:,}; {len(train):,} training conversations built."
    )
    job.log.result(**summary)


def select_facts(corpora: Sequence[Path], base: Path, limit: int) -> list[Fact]:
    """At most `limit` facts: first those of pages that training repeated most, then by a hash of the subject."""
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
        words.update(normalize(row["text"]).split())
    return words


def probe_base_model(
    base: Path, facts: Sequence[Fact], config: MixtureConfig, log: RunLog, batch_size: int = 256
) -> list[Probe]:
    """How the base model completes each fact's beginning, and the fact's status."""
    from model.generation.generate import generate
    from model.hub.load import load_pretrained

    model, tokenizer = load_pretrained(base)
    longest = model.config.max_seq_len - config.probe_tokens - 1  # tokens of a prefix
    prompts = [[tokenizer.eos_id, *tokenizer.encode(fact.prefix)[-longest:]] for fact in facts]
    completions: list[str] = []
    with log.progress(len(prompts), "probing the base model", "fact") as bar:
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            for c in generate(model, part, max_new_tokens=config.probe_tokens, stop_ids=[tokenizer.eos_id]):
                completions.append(tokenizer.decode(c.ids[:-1] if c.finished else c.ids))
            bar.update(len(part))
    return [
        Probe(
            fact.subject,
            fact.verb,
            status_of(completion, fact.definiens),
            split_of(fact.subject, config.heldout_percent),
            fact.definiens,
            completion,
            fact.record_id,
            fact.url,
        )
        for fact, completion in zip(facts, completions, strict=True)
    ]


def invented_probes(words: set[str], config: MixtureConfig, seed: int) -> list[Probe]:
    """Names that are not among the crawl's `words`: enough for training and for the held-out split."""
    names = conversations.invented_names(config.invented + 4 * config.heldout_unknown, words, seed)
    return [
        Probe(name, ("is", "was")[i % 2], INVENTED, split_of(name, config.heldout_percent))
        for i, name in enumerate(names)
    ]


def status_of(completion: str, definiens: str) -> str:
    """`known`: begins with the N words of the definiens. `unsure`: its first N + 3 words hold half of them."""
    wanted, found = normalize(definiens).split(), normalize(completion).split()
    if found[: len(wanted)] == wanted:
        return KNOWN
    near = set(found[: len(wanted) + 3])
    content = [w for w in wanted if len(w) > 3] or wanted
    return UNSURE if 2 * sum(w in near for w in content) >= len(content) else UNKNOWN


def split_of(subject: str, heldout_percent: int) -> str:
    """The split of a subject: a pure function of its words."""
    return HELDOUT if _hash(subject) % 100 < heldout_percent else TRAIN


def training_mixture(probes: Sequence[Probe], config: MixtureConfig, seed: int) -> Iterator[Conversation]:
    """All that SFT trains on, kind by kind; the trainer shuffles."""
    known = [p for p in probes if p.status == KNOWN and p.split == TRAIN]
    unknown = [p for p in probes if p.status == UNKNOWN and p.split == TRAIN][: config.unknown_pages]
    unknown += [p for p in probes if p.status == INVENTED and p.split == TRAIN][: config.invented]
    yield from conversations.about_known(known, config.known_repeats)
    yield from conversations.about_unknown(_subjects(unknown), config.unknown_phrasings, seed)
    yield from conversations.about_itself(config.identity_repeats)
    task = Environment(config.dataset, config.options)
    yield from conversations.about_problems(task, config.worked, config.called, seed, TRAIN)


def heldout_mixture(probes: Sequence[Probe], config: MixtureConfig, seed: int) -> Iterator[Conversation]:
    """The same kinds about subjects and problems that are not in training."""
    yield from conversations.about_known([p for p in probes if p.status == KNOWN and p.split == HELDOUT])
    for status in (UNKNOWN, INVENTED):
        subjects = [p for p in probes if p.status == status and p.split == HELDOUT][: config.heldout_unknown]
        yield from conversations.about_unknown(_subjects(subjects), 1, seed)
    task = Environment(config.dataset, config.options)
    yield from conversations.about_problems(
        task, min(config.worked, 100), min(config.called, 100), seed, HELDOUT
    )


def write_conversations(path: Path, rows: Sequence[Conversation]) -> None:
    """Parquet for `datasets`: conversation_id, kind, messages, source, record_id."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    names = ("conversation_id", "kind", "source", "record_id")
    schema = pa.schema([*((n, pa.string()) for n in names), ("messages", pa.list_(message))])
    write_rows(path, [row.row() for row in rows], schema)


def summarise(
    probes: Sequence[Probe], train: Sequence[Conversation], heldout: Sequence[Conversation]
) -> dict[str, int]:
    """Counts of facts by status and of conversations by kind."""
    counts = {f"facts_{s}": sum(p.status == s for p in probes) for s in (KNOWN, UNSURE, UNKNOWN)}
    counts["facts_known_heldout"] = sum(p.status == KNOWN and p.split == HELDOUT for p in probes)
    for kind in sorted({c.kind for c in train}):
        counts[f"conversations_{kind}"] = sum(c.kind == kind for c in train)
    return counts | {"conversations_heldout": len(heldout)}


def _subjects(probes: Iterable[Probe]) -> list[tuple[str, str, str | None]]:
    return [(p.subject, p.verb, p.record_id) for p in probes]


def _extra(spec: str | dict[str, Any], work: Path) -> list[Conversation]:
    try:
        return list(conversations.from_dataset(spec, work / "datasets"))
    except ValueError as error:
        raise ConfigError(f"sft_model.extra_datasets: {error}") from error


def _repeats(base: Path) -> dict[str, float]:
    """record_id -> times that an epoch of the base model's training read the page; empty for an imported model."""
    import pyarrow.parquet as pq

    index = base / "tokens" / "index.parquet"
    if not index.is_file():
        return {}
    table = pq.read_table(index, columns=["record_id", "weight"])
    return dict(zip(table["record_id"].to_pylist(), table["weight"].to_pylist(), strict=True))


def _hash(subject: str) -> int:
    return int.from_bytes(hashlib.blake2b(normalize(subject).encode(), digest_size=8).digest(), "big")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m evals.probes`; returns the exit code."""
    return run_main("evals.probes", build_conversations, argv)


if __name__ == "__main__":
    sys.exit(main())
