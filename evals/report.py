"""Base, SFT and RL model side by side, with baselines, intervals, samples and a verdict.

    python -m evals.report --config FILE.json

inputs: base_model, sft_model, rl_model (model folders). Writes report.md, report.json, samples.jsonl and plots/.
The same inputs give the same bytes: times and speeds go to the run log, not here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.files import write_json, write_json_lines
from core.settings import read_settings
from evals import plots
from evals.comparison import LABELS, compare, contamination, summary_numbers
from evals.measure import HeldoutText, Measurements, measure
from evals.probed_facts import read_probes
from evals.report_config import EvalConfig
from evals.report_page import report_page
from model.environments import Environment
from model.job import Job, run_main


def build_report(job: Job) -> None:
    """Measure the three models, compare, write: job.out, whole or not at all."""
    import torch

    config = read_settings(EvalConfig, job.params, "eval_reports")
    torch.set_num_threads(config.threads)
    folders = {name: job.input(name) for name in LABELS}
    environment = environment_of(folders["rl_model"])
    probes = read_probes(folders["sft_model"] / "conversations")
    heldout = HeldoutText(folders["base_model"], config)
    measured: dict[str, Measurements] = {}
    with job.log.progress(4 * len(LABELS), "evaluating", "task") as bar:
        for name, folder in folders.items():
            chat = name != "base_model"
            measured[name] = measure(folder, chat, environment, probes, heldout, config, bar.update)
    report = compare(measured, heldout, config)
    report["task"] = {"dataset": environment.dataset, "options": dict(environment.options)}
    report["contamination"] = contamination(folders["sft_model"], measured["rl_model"].attempts, probes)
    write(job, report, measured)
    job.log.message(f"{job.out}: {report['verdict']['sentence']}")
    job.log.result(**summary_numbers(report))


def environment_of(rl_model: Path) -> Environment:
    """The environment in which the RL model was trained, as its summary records it."""
    summary = json.loads((rl_model / "summary.json").read_text("utf-8"))
    return Environment(summary["environment"], summary["options"], summary["calculator"])


def write(job: Job, report: Mapping[str, Any], measured: Mapping[str, Measurements]) -> None:
    """report.json, report.md, samples.jsonl and plots/ by way of OUT.partial."""
    partial = job.fresh_partial()
    write_json(partial / "report.json", report)
    (partial / "report.md").write_text(report_page(report, measured), "utf-8")
    samples = [{"model": LABELS[name]} | sample for name, m in measured.items() for sample in m.samples]
    write_json_lines(partial / "samples.jsonl", samples)
    (partial / "plots").mkdir()
    plots.accuracy(report, partial / "plots" / "accuracy.png")
    plots.knowledge(report, partial / "plots" / "knowledge.png")
    plots.bits_per_byte(report, partial / "plots" / "bits_per_byte.png")
    job.publish()


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m evals.report`; returns the exit code."""
    return run_main("evals.report", build_report, argv)


if __name__ == "__main__":
    sys.exit(main())
