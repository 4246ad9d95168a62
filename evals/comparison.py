"""The three models compared: what report.json holds, and the verdict.

The verdict says whether the RL model is to replace the SFT model: it must be better at its task by `min_gain`, with an
interval that excludes zero, and lose no more than `max_loss` of what it knew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.measure import HeldoutText, Measurements
from evals.probed_facts import HELDOUT, Probe
from evals.report_config import EvalConfig
from evals.statistics import newcombe_difference, paired_bootstrap
from evals.tasks import questions_about
from model.attempts import Attempt

LABELS = {"base_model": "base", "sft_model": "SFT", "rl_model": "RL"}  # stage -> as reports name it


def compare(measured: Mapping[str, Measurements], heldout: HeldoutText, config: EvalConfig) -> dict[str, Any]:
    """Everything that report.json holds except the task and the contamination check."""
    sft, rl = measured["sft_model"], measured["rl_model"]
    gain = paired_bootstrap(sft.solved, rl.solved)
    return {
        "bits_per_byte": {
            "heldout_documents": len(heldout.documents),
            "heldout_bytes": heldout.n_bytes,
            **{LABELS[name]: _round(m.bits_per_byte) for name, m in measured.items()},
            **{name: _round(value) for name, value in heldout.baselines().items()},
        },
        "accuracy": {LABELS[name]: m.accuracy.as_dict() for name, m in measured.items()},
        "finished": {LABELS[name]: _round(m.finished) for name, m in measured.items()},
        "gain": gain.as_dict(),
        "gain_unpaired": newcombe_difference(sft.accuracy, rl.accuracy).as_dict(),
        "ways": {
            LABELS[name]: {k: p.as_dict() for k, p in m.calculator_use.items()}
            for name, m in measured.items()
        },
        "knowledge": {
            LABELS[name]: {k: p.as_dict() for k, p in m.knowledge.items()} for name, m in measured.items()
        },
        "verdict": verdict(sft, rl, config),
    }


def verdict(sft: Measurements, rl: Measurements, config: EvalConfig) -> dict[str, Any]:
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


def contamination(sft_model: Path, attempts: Sequence[Attempt], probes: Sequence[Probe]) -> dict[str, int]:
    """Held-out problems and subjects that occur in a training conversation: both must be 0."""
    import pyarrow.parquet as pq

    table = pq.read_table(sft_model / "conversations" / "train.parquet", columns=["messages"])
    asked = {m["content"] for row in table["messages"].to_pylist() for m in row if m["role"] == "user"}
    subjects = [p for p in probes if p.split == HELDOUT]
    questions = questions_about(subjects)
    return {
        "heldout_problems": len(attempts),
        "heldout_problems_in_training": sum(a.problem.prompt in asked for a in attempts),
        "heldout_subjects": len(subjects),
        "heldout_subjects_in_training": sum(bool(phrasings & asked) for phrasings in questions),
    }


def summary_numbers(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a report for a table of runs, by flat names."""
    numbers: dict[str, Any] = {}
    for label in LABELS.values():
        name = label.lower()
        numbers[f"{name}_accuracy"] = report["accuracy"][label]["rate"]
        numbers[f"{name}_bits_per_byte"] = report["bits_per_byte"][label]
        for rate in ("recall", "refusal", "hallucination"):
            numbers[f"{name}_{rate}"] = report["knowledge"][label][rate]["rate"]
    numbers |= {f"gain_{bound}": report["gain"][bound] for bound in ("low", "high")}
    numbers |= {"gain": report["gain"]["difference"]}
    for name in ("unigram", "zstd"):
        if name in report["bits_per_byte"]:
            numbers[f"{name}_bits_per_byte"] = report["bits_per_byte"][name]
    return numbers | {"promote": report["verdict"]["promote"]}


def _round(value: float) -> float:
    return round(float(value), 6)
