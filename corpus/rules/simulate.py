"""What would another threshold change? Answered from the ledger and its `values`, without reading the crawl again.

Each page's verdict is recomputed from its recorded values, with the settings of the run and with the changed one.
Exact for every page rule and for language_score: the text that a rule sees does not depend on other rules' thresholds,
and the settings of C4's pass over the lines, which edits it, cannot be changed here. Deduplication is not run again,
so a page that would pass passes "up to deduplication".
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

from core.errors import ConfigError, DataError, MissingError
from corpus import ledger
from corpus.config import CleanConfig
from corpus.rules.quality import BY_NAME, RULES, limits_of
from corpus.rules.thresholds import SETTINGS

if TYPE_CHECKING:
    from rich.console import Console

DECIDES_NOTHING = "answers a question about a finished corpus"
LANGUAGE_SCORE = "language_score"  # the ledger's rule for it is uncertain_language
PASSED = ""
LEDGER_COLUMNS = ["record_id", "url", "outcome", "stage", "rule", "duplicate_of"]


@dataclass
class Simulation:
    """What a threshold would change, in documents. 'Taken over': dropped either way, by one rule instead of another."""

    rule: str
    threshold: float | None
    threshold_was: dict[str, float | None] = field(default_factory=dict)  # by language
    pages: int = 0  # with recorded values
    kept_now_dropped: int = 0
    of_which_with_duplicates: int = 0  # a duplicate of the page still passes and would be kept in its place
    dropped_later_now_here: int = 0  # passed the rules, but deduplication or a later step drops them
    dropped_now_passed: int = 0  # up to deduplication
    # Pages of this rule that another would drop instead.
    taken_over_by: dict[str, int] = field(default_factory=dict)
    # Pages of other rules that this one would drop instead.
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

    `language`: change it for this language only. Raises ConfigError for a name that is not a rule, MissingError for a
    folder that is not a corpus, DataError where a corpus holds no values or those of other rules than this code's.
    """
    _check_name(rule, threshold)
    found = Simulation(rule, threshold)
    dropped: set[str] = set()
    replaceable: set[str] = set()
    for folder in map(Path, folders):
        was = _config_of(folder)
        now = _changed(was, rule, threshold, language)
        for part in sorted((folder / "values").glob("*.parquet")):
            newly_dropped, with_duplicates = _compare(found, part, was, now, examples)
            dropped |= newly_dropped
            replaceable |= with_duplicates
    found.of_which_with_duplicates = len(dropped & replaceable)
    for name in ("taken_over_by", "taken_over_from", "by_language", "threshold_was"):
        setattr(found, name, dict(sorted(getattr(found, name).items())))
    return found


def _check_name(rule: str, threshold: float | None) -> None:
    if rule in BY_NAME or rule == LANGUAGE_SCORE:
        if rule == LANGUAGE_SCORE and threshold is None:
            raise ConfigError("language_score cannot be off; 0 accepts every certainty.")
        return
    if rule in {setting.name for setting in SETTINGS}:
        raise ConfigError(
            f"{rule} changes what the rules measure, so the ledger cannot tell what it would do. "
            f"Set cleaned_corpus.thresholds.{rule} and clean the crawl again."
        )
    raise ConfigError(
        f"There is no rule named '{rule}'. The rules are: {', '.join((LANGUAGE_SCORE, *BY_NAME))}."
    )


def _config_of(folder: Path) -> CleanConfig:
    """The settings that a corpus was cleaned with."""
    if not (folder / "ledger").is_dir():
        raise MissingError(f"{folder} is not a cleaned corpus. Make one: stemma materialize cleaned_corpus")
    if not any((folder / "values").glob("*.parquet")):
        raise DataError(
            f"{folder} does not hold the rules' values. Record them: set 'record_values: true' under cleaned_corpus in "
            "params.yaml and materialize cleaned_corpus, or clean with 'stemma clean --all-values'."
        )
    return CleanConfig.from_dict(json.loads((folder / "stats.json").read_text())["rules"])


def _changed(config: CleanConfig, rule: str, threshold: float | None, language: str | None) -> CleanConfig:
    if rule == LANGUAGE_SCORE:
        if language:
            raise ConfigError("language_score is the same for all languages; leave --language out.")
        assert threshold is not None  # _check_name
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
        # The first rule that fails decides, so it is written last.
        for rule, limit in reversed((*limits.before_c4, *limits.after_c4)):
            measured = values[rule.name].to_numpy(zero_copy_only=False)[rows].astype(float)  # null: NaN
            with np.errstate(invalid="ignore"):
                decided[rows[rule.fails(measured, limit)]] = rule.name
    uncertain = values[LANGUAGE_SCORE].to_numpy() < config.language_score
    decided[uncertain] = LANGUAGE_SCORE
    return decided


def _compare(
    found: Simulation, part: Path, was: CleanConfig, now: CleanConfig, examples: int
) -> tuple[set[str], set[str]]:
    """Add one part's changes to `found`.

    Returns record ids: of the kept pages that would be dropped, and of the pages with a duplicate here that passes.
    """
    values = pq.read_table(part)
    rows = pq.read_table(part.parent.parent / "ledger" / part.name, columns=LEDGER_COLUMNS)
    rows = rows.take(values["row"])
    before = _verdicts_of_run(part, values, rows, was)
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
    newly_dropped, newly_passed = kept & ~passes, ~passed & passes
    found.kept_now_dropped += int(newly_dropped.sum())
    found.dropped_later_now_here += int((passed & ~kept & ~passes).sum())
    found.dropped_now_passed += int(newly_passed.sum())
    other = ~passed & ~passes & (before != after)
    for name, rules in (("taken_over_by", after), ("taken_over_from", before)):
        mine = (before if name == "taken_over_by" else after) == found.rule
        setattr(found, name, dict(Counter(getattr(found, name)) + Counter(rules[other & mine].tolist())))
    for name, flags in (("kept_now_dropped", newly_dropped), ("dropped_now_passed", newly_passed)):
        for language, count in Counter(languages[flags].tolist()).items():
            of_language = found.by_language.setdefault(language, {})
            of_language[name] = of_language.get(name, 0) + count
        _add_examples(found, name, rows, values, np.flatnonzero(flags), examples)
    dropped = rows["record_id"].filter(pa.array(newly_dropped)).to_pylist()
    with_duplicates = rows["duplicate_of"].filter(pa.array(passes)).drop_null().to_pylist()
    return set(dropped), set(with_duplicates)


def _verdicts_of_run(part: Path, values: pa.Table, rows: pa.Table, config: CleanConfig) -> np.ndarray:
    """The verdicts under the run's own settings. Raises DataError where they are not those of the ledger."""
    missing = [rule.name for rule in RULES if rule.name not in values.column_names]
    if not missing:
        recomputed = verdicts(values, config)
        if np.array_equal(recomputed, _recorded(rows)):
            return recomputed
    raise DataError(
        f"{part} does not agree with this version's rules{': ' + ', '.join(missing) if missing else ''}. "
        "Clean the crawl again with this version first."
    )


def _recorded(rows: pa.Table) -> np.ndarray:
    """The rule that dropped each page before deduplication, by the ledger; '' for none."""

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
    """Print the changes as a table, with examples."""
    from rich.table import Table

    limit = "off" if found.threshold is None else f"{found.threshold:g}"
    before = sorted({"off" if value is None else f"{value:g}" for value in found.threshold_was.values()})
    was = " or ".join(before) if len(before) < 4 else f"{before[0]} to {before[-1]} by language"
    console.print(f"[bold]{found.rule}[/] at {limit} instead of {was}; {found.pages:,} pages measured")
    table = Table(box=None, show_header=False, pad_edge=False)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    replaced, by, taken = found.of_which_with_duplicates, found.taken_over_by, found.taken_over_from
    left = f"{replaced:,} have a duplicate that would be kept in their place" if replaced else ""
    table.add_row("kept, would be dropped", f"{found.kept_now_dropped:,}", left)
    table.add_row(
        "dropped, would pass", f"{found.dropped_now_passed:,}", "up to deduplication and what follows it"
    )
    table.add_row("dropped later, now by the rule", f"{found.dropped_later_now_here:,}")
    table.add_row("would be dropped by another rule", f"{sum(by.values()):,}", _counts(by))
    table.add_row("dropped by another rule, now by this", f"{sum(taken.values()):,}", _counts(taken))
    console.print(table)
    for language, counts in found.by_language.items():
        fewer, more = counts.get("kept_now_dropped", 0), counts.get("dropped_now_passed", 0)
        console.print(f"{language}: {fewer:,} fewer, {more:,} more")
    for name, listed in found.examples.items():
        for example in listed:
            line = f"{name.replace('_', ' ')}  {example['value']:.4g}  {example['url']}"
            console.print(line, soft_wrap=True, markup=False)


def _counts(rules: dict[str, int]) -> str:
    return ", ".join(f"{rule} {count:,}" for rule, count in rules.items())
