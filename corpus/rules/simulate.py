"""What would another threshold change? Answered from the ledger and its `values`, without reading the crawl again.

Each page's verdict is worked out anew from its recorded values, with the settings of the run and with the one that
is asked about. Exact for every page rule and for language_score: the text that a rule sees does not depend on other
rules' thresholds, and C4's pass over the lines, which edits it, comes with settings of its own that cannot be asked
about here. Deduplication is not run again, so a page that would pass now passes "up to deduplication".
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus import ledger
from corpus.config import CleanConfig
from corpus.rules.quality import BY_NAME, RULES, limits_of
from corpus.rules.thresholds import SETTINGS

if TYPE_CHECKING:
    from rich.console import Console

LANGUAGE_SCORE = "language_score"  # its rule in the ledger is uncertain_language
PASSED = ""
LEDGER_COLUMNS = ["record_id", "url", "outcome", "stage", "rule", "duplicate_of"]


@dataclass
class Simulation:
    """What a threshold would change, in documents. A 'taken over' page is dropped either way, by another rule."""

    rule: str
    threshold: float | None
    threshold_was: dict[str, float | None] = field(default_factory=dict)  # by language
    pages: int = 0  # with recorded values
    kept_now_dropped: int = 0
    of_which_with_duplicates: int = 0  # a duplicate of the page passes still and would come in its place
    dropped_later_now_here: int = 0  # passed the rules, but deduplication or a later step drops them
    dropped_now_passed: int = 0  # up to deduplication
    # Drops of this rule that another makes instead.
    taken_over_by: dict[str, int] = field(default_factory=dict)
    # Drops of others that this rule makes instead.
    taken_over_from: dict[str, int] = field(default_factory=dict)
    by_language: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def simulate(
    folders: Sequence[Path | str],
    rule: str,
    threshold: float | None,
    language: str | None = None,
    examples: int = 5,
) -> Simulation:
    """What cleaned corpora would be with another threshold of one rule (None: the rule switched off).

    `language`: change it for this language only. Raises ValueError with a sentence for a name that is no rule, and
    where a corpus holds no values or values of other rules than this code's.
    """
    _check_name(rule, threshold)
    found, went, stood_for = Simulation(rule, threshold), set(), set()
    for folder in map(Path, folders):
        was = _config_of(folder)
        now = _changed(was, rule, threshold, language)
        for part in sorted((folder / "values").glob("*.parquet")):
            gone, heirs = _compare(found, part, was, now, examples)
            went |= gone
            stood_for |= heirs
    found.of_which_with_duplicates = len(went & stood_for)
    for name in ("taken_over_by", "taken_over_from", "by_language", "threshold_was"):
        setattr(found, name, dict(sorted(getattr(found, name).items())))
    return found


def _check_name(rule: str, threshold: float | None) -> None:
    if rule in BY_NAME or rule == LANGUAGE_SCORE:
        if rule == LANGUAGE_SCORE and threshold is None:
            raise ValueError("language_score cannot be off; 0 takes every certainty.")
        return
    if rule in {setting.name for setting in SETTINGS}:
        raise ValueError(
            f"{rule} changes what the rules measure, so the ledger cannot say what it would do. "
            f"Set cleaned_corpus.thresholds.{rule} and clean the crawl again."
        )
    raise ValueError(
        f"There is no rule named '{rule}'. The rules are: {', '.join((LANGUAGE_SCORE, *BY_NAME))}."
    )


def _config_of(folder: Path) -> CleanConfig:
    """The settings that a corpus was cleaned with."""
    if not (folder / "ledger").is_dir():
        raise FileNotFoundError(
            f"{folder} is not a cleaned corpus. Make one: stemma materialize cleaned_corpus"
        )
    if not any((folder / "values").glob("*.parquet")):
        raise ValueError(
            f"{folder} does not hold the rules' values. Record them: set 'record_values: true' under cleaned_corpus in "
            "params.yaml and materialize cleaned_corpus, or clean with 'stemma clean --all-values'."
        )
    return CleanConfig.from_dict(json.loads((folder / "stats.json").read_text())["rules"])


def _changed(config: CleanConfig, rule: str, threshold: float | None, language: str | None) -> CleanConfig:
    if rule == LANGUAGE_SCORE:
        if language:
            raise ValueError("language_score is one for all languages; leave --language out.")
        return replace(config, language_score=threshold)
    if language is None:
        return replace(config, thresholds={**config.thresholds, rule: threshold})
    own = {**config.language_thresholds.get(language, {}), rule: threshold}
    return replace(config, language_thresholds={**config.language_thresholds, language: own})


def verdicts(values: pa.Table, config: CleanConfig) -> np.ndarray:
    """The rule that drops each page, '' for a page that passes: (N,) str, from a table of VALUES_SCHEMA."""
    languages = values["language"].to_numpy(zero_copy_only=False)
    decided = np.full(len(values), PASSED, dtype=object)
    for language in set(languages):
        rows = np.flatnonzero(languages == language)
        limits = limits_of(config, language)
        for rule, limit in reversed(
            (*limits.before_c4, *limits.after_c4)
        ):  # the first that fails has the last word
            measured = values[rule.name].to_numpy(zero_copy_only=False)[rows].astype(float)  # null: NaN
            with np.errstate(invalid="ignore"):
                decided[rows[rule.fails(measured, limit)]] = rule.name
    unsure = values[LANGUAGE_SCORE].to_numpy() < config.language_score
    decided[unsure] = LANGUAGE_SCORE
    return decided


def _compare(
    found: Simulation, part: Path, was: CleanConfig, now: CleanConfig, examples: int
) -> tuple[set[str], set[str]]:
    """Add one part's changes. Returns record ids: (kept pages that go, pages whose duplicates here pass still)."""
    values = pq.read_table(part)
    missing = [rule.name for rule in RULES if rule.name not in values.column_names]
    rows = pq.read_table(part.parent.parent / "ledger" / part.name, columns=LEDGER_COLUMNS)
    rows = rows.take(values["row"])
    before = verdicts(values, was) if not missing else None
    if missing or (before != _recorded(rows)).any():
        raise ValueError(
            f"{part} does not agree with this version's rules{': ' + ', '.join(missing) if missing else ''}. "
            "Clean the crawl again with this version, then ask."
        )
    after = verdicts(values, now)
    languages = values["language"].to_numpy(zero_copy_only=False)
    found.pages += len(values)
    for language in set(languages.tolist()):
        limits = limits_of(was, language).thresholds
        found.threshold_was[language] = (
            was.language_score if found.rule == LANGUAGE_SCORE else limits[found.rule]
        )
    passed, passes = before == PASSED, after == PASSED
    kept = np.array(rows["outcome"].to_pylist(), dtype=object) == ledger.KEPT
    gone, come = kept & ~passes, ~passed & passes
    found.kept_now_dropped += int(gone.sum())
    found.dropped_later_now_here += int((passed & ~kept & ~passes).sum())
    found.dropped_now_passed += int(come.sum())
    other = ~passed & ~passes & (before != after)
    for name, rules in (("taken_over_by", after), ("taken_over_from", before)):
        mine = (before if name == "taken_over_by" else after) == found.rule
        setattr(found, name, dict(Counter(getattr(found, name)) + Counter(rules[other & mine].tolist())))
    for name, flags in (("kept_now_dropped", gone), ("dropped_now_passed", come)):
        for language, count in Counter(languages[flags].tolist()).items():
            of_language = found.by_language.setdefault(language, {})
            of_language[name] = of_language.get(name, 0) + count
        _add_examples(found, name, rows, values, np.flatnonzero(flags), examples)
    went = rows["record_id"].filter(pa.array(gone)).to_pylist()
    stood_for = rows["duplicate_of"].filter(pa.array(passes)).drop_null().to_pylist()
    return set(went), set(stood_for)


def _recorded(rows: pa.Table) -> np.ndarray:
    """The rule that the ledger says dropped each page before deduplication, '' for none."""

    def rule_of(stage: str | None, rule: str | None) -> str:
        if stage == "language":
            return LANGUAGE_SCORE
        return rule if stage == "quality" and rule in BY_NAME else PASSED

    return np.array(list(map(rule_of, rows["stage"].to_pylist(), rows["rule"].to_pylist())), dtype=object)


def _add_examples(
    found: Simulation, name: str, rows: pa.Table, values: pa.Table, chosen: np.ndarray, examples: int
) -> None:
    listed = found.examples.setdefault(name, [])
    for number in chosen[: max(0, examples - len(listed))].tolist():
        value = values[found.rule][number].as_py()
        listed.append({"url": rows["url"][number].as_py(), "value": value})


def print_simulation(found: Simulation, console: "Console") -> None:
    """For people."""
    from rich.table import Table

    limit = "off" if found.threshold is None else f"{found.threshold:g}"
    before = sorted({"off" if value is None else f"{value:g}" for value in found.threshold_was.values()})
    was = " or ".join(before) if len(before) < 4 else f"{before[0]} to {before[-1]} by language"
    console.print(f"[bold]{found.rule}[/] at {limit} instead of {was}; {found.pages:,} pages measured")
    table = Table(box=None, show_header=False, pad_edge=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    heirs, by, taken = found.of_which_with_duplicates, found.taken_over_by, found.taken_over_from
    left = f"{heirs:,} leave a duplicate that would come in their place" if heirs else ""
    table.add_row("kept, would be dropped", f"{found.kept_now_dropped:,}", left)
    table.add_row(
        "dropped, would pass", f"{found.dropped_now_passed:,}", "up to deduplication and what follows it"
    )
    table.add_row("dropped later, now by the rule", f"{found.dropped_later_now_here:,}")
    table.add_row("drops that another rule would make", f"{sum(by.values()):,}", _counts(by))
    table.add_row("drops taken from another rule", f"{sum(taken.values()):,}", _counts(taken))
    console.print(table)
    for language, counts in found.by_language.items():
        went, came = counts.get("kept_now_dropped", 0), counts.get("dropped_now_passed", 0)
        console.print(f"{language}: {went:,} fewer, {came:,} more")
    for name, listed in found.examples.items():
        for example in listed:
            words = f"{name.replace('_', ' ')}  {example['value']:.4g}  {example['url']}"
            console.print(words, soft_wrap=True, markup=False)


def _counts(rules: dict[str, int]) -> str:
    return ", ".join(f"{rule} {count:,}" for rule, count in rules.items())
