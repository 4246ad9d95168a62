"""Base, SFT and RL model side by side, with baselines, intervals, samples and a verdict.

    python -m evals.report --config FILE.json

inputs: base_model, sft_model, rl_model (model folders). Writes report.md, report.json, samples.jsonl and plots/.
The same inputs give the same bytes: times and speeds go to the run log, not here.

The verdict says whether the RL model should take the SFT model's place: it must be better at its task by
`min_gain`, with an interval that excludes zero, and no worse than `max_loss` at what it knew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError
from core.files import write_json
from core.settings import read_settings
from evals import baselines, plots, tasks
from evals.probes import HELDOUT, INVENTED, KNOWN, TRAIN, UNKNOWN, Probe, read_probes
from evals.sets import N_SUMS, SUMS_SEED
from evals.statistics import Proportion, newcombe_difference, paired_bootstrap, proportion
from model.environments import Environment
from model.job import Job, run_main

MODELS = ("base_model", "sft_model", "rl_model")
LABELS = {"base_model": "base", "sft_model": "SFT", "rl_model": "RL"}
KNOWLEDGE = {
    "recall": "known facts answered right, asked in a phrasing not in training",
    "recall_unseen": "known facts answered right, never asked about in training",
    "over_refusal": "known facts declined",
    "refusal": "unknown facts and invented names declined",
    "hallucination": "unknown facts and invented names answered wrongly",
    "hallucination_pages": "… pages it read but does not know",
    "hallucination_invented": "… names that exist nowhere",
}


@dataclass(frozen=True)
class EvalConfig:
    """The section `eval_reports` of params.yaml."""

    problems: int = N_SUMS  # held-out problems of the task, different ones
    facts: int = 150  # held-out subjects of each kind at most
    max_new_tokens: int = 48
    heldout_bytes: int = 500_000  # of held-out text at most, for bits per byte
    baseline_bytes: int = 64_000_000  # of training text at most, given to zstd as dictionary
    min_gain: float = 0.15  # accuracy that RL must add to be promoted
    max_loss: float = 0.15  # recall that it may lose, and hallucination that it may gain
    seed: int = SUMS_SEED  # of the held-out problems
    threads: int = 2

    def __post_init__(self):
        if self.problems < 1 or self.threads < 1:
            raise ConfigError("eval_reports: problems and threads must be at least 1.")


@dataclass
class ModelNumbers:
    """What was measured of one model. `solved` is one entry a held-out problem, the same for all models."""

    bits_per_byte: float
    solved: list[bool]
    finished: float
    ways: dict[str, Proportion]  # called: share of answers that call the calculator; right_… by either way
    knowledge: dict[str, Proportion]
    attempts: list[Any] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def accuracy(self) -> Proportion:
        return proportion(self.solved)


def report(job: Job) -> None:
    """Measure the three models, compare, write: job.out, whole or not at all."""
    import torch

    config = read_settings(EvalConfig, dict(job.params), "eval_reports")
    torch.set_num_threads(config.threads)
    folders = {name: job.input(name) for name in MODELS}
    environment = task_of(folders["rl_model"])
    judged = read_probes(folders["sft_model"] / "conversations")
    heldout = HeldoutText(folders["base_model"] / "tokens", config)
    measured: dict[str, ModelNumbers] = {}
    with job.log.progress(4 * len(MODELS), "evaluating", "task") as bar:
        for name, folder in folders.items():
            chat = name != "base_model"
            measured[name] = measure(folder, chat, environment, judged, heldout, config, bar.update)
    found = compare(measured, heldout, config)
    found["task"] = {"dataset": environment.dataset, "options": dict(environment.options)}
    found["contamination"] = contamination(folders["sft_model"], measured["rl_model"].attempts, judged)
    write(job, found, measured)
    job.log.message(f"{job.out}: {found['verdict']['sentence']}")
    job.log.result(**flat(found))


class HeldoutText:
    """The base model's held-out documents as tokens, and what the baselines make of them."""

    def __init__(self, tokens: Path, config: EvalConfig):
        from model.data.config import HELD_OUT, TRAIN
        from model.data.loader import TokenData

        self.data = TokenData(tokens)
        self.train_documents = self.data.documents(TRAIN)
        self.documents: list[np.ndarray] = []
        self.n_bytes = 0
        for number in self.data.documents(HELD_OUT):
            if self.n_bytes and self.n_bytes + self.data.n_bytes[number] > config.heldout_bytes:
                break
            self.documents.append(self.data.tokens(number))
            self.n_bytes += int(self.data.n_bytes[number])
        self.config = config

    def bits_per_byte(self, model: Any) -> float:
        """The model's bits per byte, as pretraining measures it (model/pretrain.py)."""
        import torch

        from model.bits_per_byte import bits_per_byte

        with torch.no_grad():
            width = min(256, model.config.max_seq_len - 1)
            return bits_per_byte(model, self.documents, self.n_bytes, self.data.separator, width)

    def baselines(self, tokenizer: Any) -> dict[str, float]:
        """Bits per byte of unigram tokens and of zstd with the training text as dictionary; nan without text."""
        if not self.n_bytes:
            return {}
        counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        texts, n_bytes = [], 0
        for number in self.train_documents:
            tokens = self.data.tokens(number)
            counts += np.bincount(tokens, minlength=len(counts))
            if n_bytes < self.config.baseline_bytes:
                texts.append(tokenizer.decode(tokens[:-1].tolist()))
                n_bytes += int(self.data.n_bytes[number])
        ids = np.concatenate(self.documents).astype(np.int64)
        heldout = [tokenizer.decode(d[:-1].tolist()) for d in self.documents]
        return {
            "unigram": baselines.unigram_bits_per_byte(counts, ids, self.n_bytes),
            "zstd": baselines.zstd_bits_per_byte(texts, heldout),
        }


def task_of(rl_model: Path) -> Environment:
    """The environment in which the RL model was trained, as its summary records it."""
    path = rl_model / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    return Environment(summary["environment"], summary["options"], summary["calculator"])


def measure(
    folder: Path,
    chat: bool,
    environment: Environment,
    judged: Sequence[Probe],
    heldout: HeldoutText,
    config: EvalConfig,
    done: Any,
) -> ModelNumbers:
    """All numbers of one model; `done()` is called after each of four tasks."""
    from model.hub.load import load_pretrained

    model, tokenizer = load_pretrained(folder)
    heldout.vocabulary = tokenizer
    bpb = heldout.bits_per_byte(model)
    done()
    asked = (config.seed, config.max_new_tokens, chat)
    attempts = tasks.arithmetic(model, tokenizer, environment, config.problems, *asked)
    done()
    known = tasks.knowledge(model, tokenizer, judged, config.facts, chat)
    done()
    samples = sample(model, tokenizer, chat, attempts, judged)
    done()
    return ModelNumbers(
        bpb,
        [a.reward == 1.0 for a in attempts],
        sum(a.finished for a in attempts) / len(attempts),
        tasks.ways(attempts),
        known,
        attempts,
        samples,
    )


def sample(model, tokenizer, chat: bool, attempts, judged) -> list[dict[str, Any]]:
    """A few conversations: who it is, known and unknown subjects, sums. The first of each, not the best."""
    asked = ["Who are you?", "What is your name?"]
    shown = [
        ("identity", q, a) for q, a in zip(asked, tasks.respond(model, tokenizer, asked, chat), strict=True)
    ]
    for status, split, phrasing in ((KNOWN, TRAIN, None), (UNKNOWN, HELDOUT, 0), (INVENTED, HELDOUT, 0)):
        subjects = [p for p in judged if p.split == split and p.status == status][:3]
        answers = tasks.ask_about(model, tokenizer, subjects, chat, phrasing)
        shown += [(status, a.question, a.text) for a in answers]
    shown += [("sum", a.problem.prompt, a.text) for a in attempts[:5]]
    return [{"kind": kind, "question": question, "answer": answer} for kind, question, answer in shown]


def compare(measured: dict[str, ModelNumbers], heldout: HeldoutText, config: EvalConfig) -> dict[str, Any]:
    """Everything that report.json holds, but the task and the contamination check."""
    sft, rl = measured["sft_model"], measured["rl_model"]
    gain = paired_bootstrap(sft.solved, rl.solved)
    return {
        "bits_per_byte": {
            "heldout_documents": len(heldout.documents),
            "heldout_bytes": heldout.n_bytes,
            **{LABELS[name]: _round(m.bits_per_byte) for name, m in measured.items()},
            **{name: _round(v) for name, v in heldout.baselines(heldout.vocabulary).items()},
        },
        "accuracy": {LABELS[name]: m.accuracy.as_dict() for name, m in measured.items()},
        "finished": {LABELS[name]: _round(m.finished) for name, m in measured.items()},
        "gain": gain.as_dict(),
        "gain_unpaired": newcombe_difference(sft.accuracy, rl.accuracy).as_dict(),
        "ways": {LABELS[name]: {k: p.as_dict() for k, p in m.ways.items()} for name, m in measured.items()},
        "knowledge": {
            LABELS[name]: {k: p.as_dict() for k, p in m.knowledge.items()} for name, m in measured.items()
        },
        "verdict": verdict(sft, rl, config),
    }


def verdict(sft: ModelNumbers, rl: ModelNumbers, config: EvalConfig) -> dict[str, Any]:
    """Whether the RL model should replace the SFT model, with a reason for each condition."""
    gain = paired_bootstrap(sft.solved, rl.solved)
    lost = sft.knowledge["recall"].rate - rl.knowledge["recall"].rate
    invents = rl.knowledge["hallucination"].rate - sft.knowledge["hallucination"].rate
    conditions = {
        f"gain of at least {100 * config.min_gain:.0f} points: {gain}": gain.difference >= config.min_gain,
        f"its 95 % interval excludes zero: from {100 * gain.low:+.1f}": gain.low > 0,
        f"recall of known facts falls by at most {100 * config.max_loss:.0f} points: {-100 * lost:+.1f}": (
            lost <= config.max_loss
        ),
        f"hallucination rises by at most {100 * config.max_loss:.0f} points: {100 * invents:+.1f}": (
            invents <= config.max_loss
        ),
    }
    promote = all(conditions.values())
    failed = "; ".join(reason for reason, met in conditions.items() if not met)
    return {
        "promote": promote,
        "conditions": [{"condition": reason, "met": met} for reason, met in conditions.items()],
        "sentence": f"Promote the RL model: {gain} on its task."
        if promote
        else f"Do not promote the RL model; not met: {failed}.",
    }


def contamination(sft_model: Path, attempts: Sequence[Any], judged: Sequence[Probe]) -> dict[str, int]:
    """Held-out problems and subjects that occur in a training conversation: both must be 0."""
    import pyarrow.parquet as pq

    table = pq.read_table(sft_model / "conversations" / "train.parquet", columns=["messages"])
    asked = {m["content"] for row in table["messages"].to_pylist() for m in row if m["role"] == "user"}
    subjects = [p for p in judged if p.split == HELDOUT]
    questions = tasks.questions_about(subjects)
    return {
        "heldout_problems": len(attempts),
        "heldout_problems_in_training": sum(a.problem.prompt in asked for a in attempts),
        "heldout_subjects": len(subjects),
        "heldout_subjects_in_training": sum(bool(forms & asked) for forms in questions),
    }


def write(job: Job, found: dict[str, Any], measured: dict[str, ModelNumbers]) -> None:
    """report.json, report.md, samples.jsonl and plots/ by way of OUT.partial."""
    partial = job.fresh_partial()
    write_json(partial / "report.json", found)
    (partial / "report.md").write_text(markdown(found, measured), "utf-8")
    lines = [{"model": LABELS[n]} | s for n, m in measured.items() for s in m.samples]
    (partial / "samples.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8"
    )
    (partial / "plots").mkdir()
    plots.accuracy(found, partial / "plots" / "accuracy.png")
    plots.knowledge(found, partial / "plots" / "knowledge.png")
    plots.bits_per_byte(found, partial / "plots" / "bits_per_byte.png")
    job.publish()


def flat(found: dict[str, Any]) -> dict[str, Any]:
    """The numbers that a table of runs wants, by plain names."""
    numbers: dict[str, Any] = {}
    for label in LABELS.values():
        name = label.lower()
        numbers[f"{name}_accuracy"] = found["accuracy"][label]["rate"]
        numbers[f"{name}_bits_per_byte"] = found["bits_per_byte"][label]
        for rate in ("recall", "refusal", "hallucination"):
            numbers[f"{name}_{rate}"] = found["knowledge"][label][rate]["rate"]
    numbers |= {f"gain_{k}": found["gain"][k] for k in ("low", "high")} | {
        "gain": found["gain"]["difference"]
    }
    numbers |= {
        f"{k}_bits_per_byte": found["bits_per_byte"][k]
        for k in ("unigram", "zstd")
        if k in found["bits_per_byte"]
    }
    return numbers | {"promote": found["verdict"]["promote"]}


def markdown(found: dict[str, Any], measured: dict[str, ModelNumbers]) -> str:
    """The report for people."""
    labels = list(LABELS.values())
    bpb, task = found["bits_per_byte"], found["task"]
    options = ", ".join(f"{k} {v}" for k, v in task["options"].items())
    head = f"| | {' | '.join(labels)} |\n|---|{'---|' * len(labels)}\n"
    knowledge = "".join(
        f"| {words} | {' | '.join(_cell(found['knowledge'][m][name]) for m in labels)} |\n"
        for name, words in KNOWLEDGE.items()
    )
    baseline = "".join(
        f"| {words} | {bpb[name]:.3f} |\n"
        for name, words in (("unigram", "unigram tokens"), ("zstd", "zstd −19, training text as dictionary"))
        if name in bpb
    )
    finished = [f"{100 * found['finished'][m]:.1f} %" for m in labels]
    checks = "".join(
        f"- {'yes' if c['met'] else '**no**'}: {c['condition']}\n" for c in found["verdict"]["conditions"]
    )
    clean = found["contamination"]
    return (
        f"# Evaluation\n\n**{found['verdict']['sentence']}**\n\n{checks}\n"
        f"## Sums\n\n`{task['dataset']}` of reasoning-gym ({options}), {clean['heldout_problems']} different held-out "
        f"problems, greedy answers; a right answer that does not stop counts as wrong. Wilson 95 % intervals. "
        f"{clean['heldout_problems_in_training']} of these problems occur in training conversations.\n\n{head}"
        f"| right | {' | '.join(_cell(found['accuracy'][m]) for m in labels)} |\n"
        f"| answers that stop by themselves | {' | '.join(finished)} |\n"
        f"| answers that call the calculator | {' | '.join(_cell(found['ways'][m]['called']) for m in labels)} |\n"
        f"| right, of those | {' | '.join(_cell(found['ways'][m]['right_called']) for m in labels)} |\n"
        f"| right, of those in the head | {' | '.join(_cell(found['ways'][m]['right_in_head']) for m in labels)} |\n\n"
        f"RL less SFT: {_difference(found['gain'])} (paired bootstrap over problems); "
        f"{_difference(found['gain_unpaired'])} (Newcombe, as if unpaired).\n\n"
        f"## Facts\n\nKnown: the base model completes the page's defining sentence with the page's own words. Unknown: "
        f"it does not come near. {clean['heldout_subjects']} held-out subjects, of which "
        f"{clean['heldout_subjects_in_training']} occur in training conversations. The base model has no way to "
        f"decline; it is shown “Question: … Answer:”.\n\n{head}{knowledge}\n"
        f"## Bits per byte\n\n{bpb['heldout_documents']} held-out documents, {bpb['heldout_bytes']:,} bytes. "
        f"An assistant's own are worse: it has learnt to answer, and unlearnt to write pages.\n\n"
        f"| | bits per byte |\n|---|---|\n"
        + "".join(f"| {m} | {bpb[m]:.3f} |\n" for m in labels)
        + baseline
        + "\n## Samples\n\nThe first of each kind, not the best.\n\n"
        + _samples(measured)
    )


def _samples(measured: dict[str, ModelNumbers]) -> str:
    base, sft, rl = (measured[name].samples for name in MODELS)
    rows = "".join(
        f"| {b['kind']} | {' | '.join(map(_plain, (b['question'], b['answer'], s['answer'], r['answer'])))} |\n"
        for b, s, r in zip(base, sft, rl, strict=True)
    )
    return f"| | question | base | SFT | RL |\n|---|---|---|---|---|\n{rows}"


def _plain(text: str, width: int = 120) -> str:
    line = " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _cell(p: dict[str, Any]) -> str:
    if not p["n"]:
        return "none"
    return f"{100 * p['rate']:.1f} % [{100 * p['low']:.1f}, {100 * p['high']:.1f}] of {p['n']}"


def _difference(d: dict[str, Any]) -> str:
    return f"{100 * d['difference']:+.1f} points [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"


def _round(value: float) -> float:
    return round(float(value), 6)


def main(argv: list[str] | None = None) -> int:
    return run_main("evals.report", report, argv)


if __name__ == "__main__":
    sys.exit(main())
