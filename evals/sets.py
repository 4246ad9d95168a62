"""Evaluation sets by name: what models will be asked, so that it can be kept out of what they are trained on.

`training_set.eval_sets` of params.yaml names each set and its source: `null` (the Hugging Face hub; `sums` are
generated on the spot), the path of a local copy, or {path, columns} for a set of one's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from evals.sums import N_SUMS, SUMS, SUMS_SEED

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class EvalSet:
    """A public set's place on the hub, and those of its columns that a model must not have read."""

    hub: str
    config: str | None
    split: str
    columns: tuple[str, ...]


# Questions and solutions; not contexts, which are pages of the web that a model may have read.
KNOWN = {
    "arc_challenge": EvalSet("allenai/ai2_arc", "ARC-Challenge", "test", ("question",)),
    "arc_easy": EvalSet("allenai/ai2_arc", "ARC-Easy", "test", ("question",)),
    "bbh": EvalSet("lukaemon/bbh", "boolean_expressions", "test", ("input",)),
    "gsm8k": EvalSet("openai/gsm8k", "main", "test", ("question", "answer")),
    "hellaswag": EvalSet("Rowan/hellaswag", None, "validation", ("ctx",)),
    "humaneval": EvalSet("openai/openai_humaneval", None, "test", ("prompt", "canonical_solution")),
    "ifeval": EvalSet("google/IFEval", None, "train", ("prompt",)),
    "mmlu": EvalSet("cais/mmlu", "all", "test", ("question",)),
    "truthfulqa": EvalSet("truthfulqa/truthful_qa", "generation", "validation", ("question",)),
    "xquad": EvalSet("google/xquad", "xquad.en", "validation", ("question",)),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One text of an evaluation set: the row and the column in which it is."""

    eval_set: str
    number: int
    column: str
    text: str

    @property
    def name(self) -> str:
        """`gsm8k/17.question`"""
        return f"{self.eval_set}/{self.number}.{self.column}"


def examples(eval_sets: Mapping[str, Any], root: Path) -> Iterator[Example]:
    """The texts of evaluation sets, set by set in order of name; paths are relative to `root`.

    Raises ConfigError for a set that is not known or cannot be read.
    """
    for name in sorted(eval_sets):
        spec = eval_sets[name]
        if name == SUMS:
            yield from _sums(spec)
            continue
        columns = KNOWN[name].columns if name in KNOWN else ()
        if isinstance(spec, Mapping):
            columns, spec = tuple(spec.get("columns") or columns), spec.get("path")
        if not columns:
            raise ConfigError(
                f"training_set.eval_sets.{name}: no set of that name is known ({', '.join(sorted([*KNOWN, SUMS]))}). "
                "For a set of your own give {path: FILE, columns: [question, …]}."
            )
        rows = _local(name, root / spec) if spec else _hub(name)
        yield from _texts(name, rows, columns)


def _texts(name: str, rows: Any, columns: tuple[str, ...]) -> Iterator[Example]:
    names = {str(column).lower(): column for column in rows.column_names}
    if missing := [column for column in columns if column.lower() not in names]:
        raise ConfigError(
            f"training_set.eval_sets.{name}: no column {', '.join(missing)}; there are {', '.join(names.values())}."
        )
    for number, row in enumerate(rows):
        for column in columns:
            if text := row[names[column.lower()]]:
                yield Example(name, number, column, str(text))


def _local(name: str, path: Path) -> Any:
    from datasets import disable_progress_bars, load_dataset

    kind = FORMATS.get(Path(path.name.removesuffix(".gz")).suffix)
    if kind is None or not path.is_file():
        raise ConfigError(
            f"training_set.eval_sets.{name}: {path} is no readable file; the formats are {', '.join(FORMATS)} (or .gz)."
        )
    disable_progress_bars()
    return load_dataset(kind, data_files=str(path), split="train")


def _hub(name: str) -> Any:
    from datasets import load_dataset

    known = KNOWN[name]
    try:
        return load_dataset(known.hub, known.config, split=known.split)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"training_set.eval_sets.{name}: {known.hub} cannot be loaded ({error}). Give the path of a local copy "
            f"instead, e.g. {name}: evals/{name}.jsonl."
        ) from error


def _sums(spec: Mapping[str, Any] | None) -> Iterator[Example]:
    """Held-out problems of the default environment, or of the one whose fields are given."""
    from model.environments import Environment

    problems = Environment(**(spec or {})).generate(SUMS_SEED, N_SUMS, "heldout")
    for number, problem in enumerate(problems):
        yield Example(SUMS, number, "prompt", problem.prompt)
