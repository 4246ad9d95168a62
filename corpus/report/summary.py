"""A cleaned crawl in words and tables: the funnel on the terminal and as Markdown, and its numbers.

Notable: most functions take either stats.json as loaded, or the CleanStats that clean_crawl returns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import MissingError

if TYPE_CHECKING:
    from rich.console import Console

DECIDES_NOTHING = "words and tables for people"
STEP_NAMES = {
    "read": "read as a page",
    "url": "address wanted",
    "extraction": "has main text",
    "language": "language wanted",
    "quality": "quality rules",
    "dedup": "not a duplicate",
    "classifier": "quality classifier",
    "pii": "personal data out",
}
CHANGED = {"dedup": "repeats taken out", "pii": "replaced"}  # what a step does to pages that it keeps
BYTES_PER_TOKEN = (
    4.0  # a rule of thumb for English and a large vocabulary; the tokenizer stage measures its own
)
SAMPLE_DOCUMENTS = 500  # that a tokenizer is measured on
TOP_REASONS = 4


def load(folder: Path | str) -> dict[str, Any]:
    """stats.json of a cleaned corpus. Raises MissingError where there is none."""
    path = Path(folder) / "stats.json"
    if not path.is_file():
        raise MissingError(
            f"{path} is not there, so {folder} holds no cleaned corpus. Make it: stemma materialize cleaned_corpus"
        )
    return json.loads(path.read_text())


def _data(stats: Any) -> Mapping[str, Any]:
    return getattr(stats, "data", stats)


def funnel(stats: Any) -> list[dict[str, Any]]:
    """The steps of a CleanStats or a loaded stats.json: stage, name, in, dropped, failed, left, share, reasons."""
    data = _data(stats)
    records = max(1, data["records"])
    return [
        step | {"name": STEP_NAMES[step["stage"]], "share": step["left"] / records} for step in data["funnel"]
    ]


def reasons_text(step: Mapping[str, Any], most: int | None = TOP_REASONS) -> str:
    """'rule 12, rule 3, …' of a step, most frequent first, and how many of the pages it keeps it changed."""
    items = list(step["reasons"].items())
    shown = items if most is None else items[:most]
    rest = sum(count for _, count in items[len(shown) :])
    parts = [f"{rule} {count:,}" for rule, count in shown] + ([f"others {rest:,}"] if rest else [])
    return ", ".join(
        parts + ([f"{CHANGED[step['stage']]} in {step['touched']:,} pages"] if step["touched"] else [])
    )


def headline(stats: Any) -> str:
    """One sentence: records in, documents and words out."""
    data = _data(stats)
    share = data["kept"] / max(1, data["records"])
    return (
        f"{data['records']:,} records: {data['kept']:,} kept ({share:.0%}), {data['dropped']:,} dropped, "
        f"{data['failed']:,} failed; {data['words']:,} words in {data['documents']:,} documents"
    )


def tokens(stats: Any, folder: Path | None = None, tokenizer: Path | None = None) -> tuple[float, str]:
    """(tokens of the documents, how they were counted): by a tokenizer.json on a sample, else by rule of thumb."""
    data = _data(stats)
    if tokenizer is None or folder is None or not data["documents"]:
        return data["bytes"] / BYTES_PER_TOKEN, f"at {BYTES_PER_TOKEN:g} bytes a token"
    from tokenizers import Tokenizer

    from corpus.ledger import document_dataset

    texts = document_dataset(folder).head(SAMPLE_DOCUMENTS, columns=["text"])["text"].to_pylist()
    encoded = Tokenizer.from_file(str(tokenizer)).encode_batch_fast(texts, add_special_tokens=False)
    ratio = sum(len(text.encode()) for text in texts) / max(1, sum(len(found) for found in encoded))
    return data["bytes"] / ratio, f"at {ratio:.2f} bytes a token, measured"


def outcome(stats: Any, tokens: tuple[float, str]) -> str:
    """'1,435 documents, 174,351 words, 1.1 MB, about 269 thousand tokens (at 4 bytes a token)'."""
    data = _data(stats)
    return (
        f"{data['documents']:,} documents, {data['words']:,} words, {size(data['bytes'])} of text, "
        f"about {short(tokens[0])} tokens ({tokens[1]})"
    )


def median_length(stats: Any) -> str:
    """The bin of the length histogram with the median document: '100 to 200 words'."""
    bins = list(_data(stats)["words_per_document"].items())
    half, seen = sum(count for _, count in bins) / 2, 0
    for (name, count), after in zip(bins, [*bins[1:], None], strict=True):
        seen += count
        if seen >= half and count:
            low = name.rstrip("+")
            return f"{low} to {after[0].rstrip('+')} words" if after else f"{low} words or more"
    return "unknown"


def short(number: float) -> str:
    """A count in three significant digits: '1.44 M'."""
    for unit, name in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def size(n_bytes: float) -> str:
    """Bytes with a decimal unit: '1.08 MB'."""
    return f"{short(n_bytes)}B" if n_bytes >= 1e3 else f"{n_bytes:.0f} bytes"


def print_funnel(stats: Any, console: Console | None = None) -> None:
    """Print the funnel, and the scores against the truth where there are any; fits 80 columns."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = console or Console()
    steps = funnel(stats)
    wide = max(9, *(len(f"{step['in']:,}") for step in steps))
    bar = max(8, min(40, console.width - 17 - 3 * wide - 10))
    console.print(Text(headline(stats), "bold"))
    console.print(Text(f"{'':<17}{'left':>{wide}}{'%':>5}{'dropped':>{wide}}{'failed':>{wide}}", "dim"))
    for step in steps:
        dropped, failed = (f"{step[name]:,}" if step[name] else "·" for name in ("dropped", "failed"))
        line = f"{step['name']:<17}{step['left']:>{wide},}{100 * step['share']:>5.0f}{dropped:>{wide}}{failed:>{wide}}"
        filled = round(bar * step["share"])
        lost = round(bar * step["in"] / max(1, steps[0]["in"])) - filled
        console.print(
            Text.assemble(line, "  ", ("█" * filled, "cyan"), ("░" * lost, "yellow")), highlight=False
        )
        if why := reasons_text(step):
            console.print(Padding(Text(why, "dim"), (0, 0, 0, 4)))
    for line in truth_lines(stats):
        console.print(Text(line))


def truth_lines(stats: Any) -> list[str]:
    """The scores against a sample's ground truth, a line each; empty where there is none."""
    lines = []
    for name, score in (_data(stats).get("truth") or {}).items():
        if score and name == "extraction" and score["documents"]:
            lines.append(f"{name}: word F1 {score['f1']:.3f} over {score['documents']:,} documents")
        elif score and "right" in score:
            parts = [
                f"{k} {score[k]:.3f}" if score[k] is not None else f"{k} –" for k in ("precision", "recall")
            ]
            counts = ", ".join(f"{score[k]:,} {k}" for k in ("right", "wrong", "missed"))
            lines.append(f"{name}: {', '.join(parts)} ({counts})")
    return lines


def markdown(stats: Any) -> str:
    """The funnel, all reasons and the scores as Markdown, for Dagster and the docs."""
    rows = ["| step | in | dropped | failed | left | why |", "|---|--:|--:|--:|--:|---|"]
    for step in funnel(stats):
        numbers = " | ".join(f"{step[name]:,}" for name in ("in", "dropped", "failed", "left"))
        rows.append(
            f"| {step['name']} | {numbers} | {reasons_text(step, None).replace('|', chr(92) + '|')} |"
        )
    scores = [f"- {line}" for line in truth_lines(stats)]
    return "\n".join([f"**{headline(stats)}**", "", *rows, *(["", *scores] if scores else [])]) + "\n"


def samples_markdown(drawn: Iterable[Any]) -> str:
    """The pages drawn of every rule (samples.Drawn), a table a rule: address, measured value, limit."""
    from corpus.rules.meaning import meaning, number

    lines = []
    for found in drawn:
        if not found.rule:
            continue
        lines += [f"**{found.rule}**: {meaning(found.rule)} {found.pages:,} pages.", ""]
        lines += ["| page | host | language or detail | value | limit |", "|---|---|---|--:|--:|"]
        for row in found.rows:
            cells = (
                row["url"][:120],
                row["host"],
                row["detail"] or "",
                *map(number, (row["value"], row["threshold"])),
            )
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text of an untrusted page as a Markdown cell: as code, so that nothing in it is a link, an image or markup."""
    plain = " ".join(text.replace("`", "'").replace("|", "\\|").split())
    return f"`{plain}`" if plain else ""
