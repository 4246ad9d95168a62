"""report.md: the comparison of the models as a page for people. Its text is part of the stage's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.comparison import LABELS
from evals.measure import Measurements

KNOWLEDGE = {
    "recall": "known facts answered right, asked in a phrasing not in training",
    "recall_unseen": "known facts answered right, never asked about in training",
    "over_refusal": "known facts declined",
    "refusal": "unknown facts and invented names declined",
    "hallucination": "unknown facts and invented names answered wrongly",
    "hallucination_pages": "… pages it read but does not know",
    "hallucination_invented": "… names that exist nowhere",
}


def report_page(report: Mapping[str, Any], measured: Mapping[str, Measurements]) -> str:
    """The page of a report (what report.json holds) with samples of all models."""
    labels = list(LABELS.values())
    bpb, task = report["bits_per_byte"], report["task"]
    options = ", ".join(f"{k} {v}" for k, v in task["options"].items())
    head = f"| | {' | '.join(labels)} |\n|---|{'---|' * len(labels)}\n"
    knowledge = "".join(
        f"| {meaning} | {' | '.join(_cell(report['knowledge'][m][name]) for m in labels)} |\n"
        for name, meaning in KNOWLEDGE.items()
    )
    baseline = "".join(
        f"| {meaning} | {bpb[name]:.3f} |\n"
        for name, meaning in (
            ("unigram", "unigram tokens"),
            ("zstd", "zstd −19, training text as dictionary"),
        )
        if name in bpb
    )
    finished = [f"{100 * report['finished'][m]:.1f} %" for m in labels]
    checks = "".join(
        f"- {'yes' if c['met'] else '**no**'}: {c['condition']}\n" for c in report["verdict"]["conditions"]
    )
    leaks = report["contamination"]
    return (
        f"# Evaluation\n\n**{report['verdict']['sentence']}**\n\n{checks}\n"
        f"## Sums\n\n`{task['dataset']}` of reasoning-gym ({options}), {leaks['heldout_problems']} different held-out "
        f"problems, greedy answers; a right answer that does not stop counts as wrong. Wilson 95 % intervals. "
        f"{leaks['heldout_problems_in_training']} of these problems occur in training conversations.\n\n{head}"
        f"| right | {' | '.join(_cell(report['accuracy'][m]) for m in labels)} |\n"
        f"| answers that stop by themselves | {' | '.join(finished)} |\n"
        f"| answers that call the calculator | {' | '.join(_cell(report['ways'][m]['called']) for m in labels)} |\n"
        f"| right, of those | {' | '.join(_cell(report['ways'][m]['right_called']) for m in labels)} |\n"
        f"| right, of those in the head | {' | '.join(_cell(report['ways'][m]['right_in_head']) for m in labels)} |\n\n"
        f"RL less SFT: {_difference(report['gain'])} (paired bootstrap over problems); "
        f"{_difference(report['gain_unpaired'])} (Newcombe, as if unpaired).\n\n"
        f"## Facts\n\nKnown: the base model completes the page's defining sentence with the page's own words. Unknown: "
        f"it does not come near. {leaks['heldout_subjects']} held-out subjects, of which "
        f"{leaks['heldout_subjects_in_training']} occur in training conversations. The base model has no way to "
        f"decline; it is shown “Question: … Answer:”.\n\n{head}{knowledge}\n"
        f"## Bits per byte\n\n{bpb['heldout_documents']} held-out documents, {bpb['heldout_bytes']:,} bytes. "
        f"An assistant's own are worse: it has learnt to answer, and unlearnt to write pages.\n\n"
        f"| | bits per byte |\n|---|---|\n"
        + "".join(f"| {m} | {bpb[m]:.3f} |\n" for m in labels)
        + baseline
        + "\n## Samples\n\nThe first of each kind, not the best.\n\n"
        + _samples(measured)
    )


def _samples(measured: Mapping[str, Measurements]) -> str:
    base, sft, rl = (measured[name].samples for name in LABELS)
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
