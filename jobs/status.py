"""The state of the chain: every stage's version, whether it is current and why not, and its key numbers.

Imports neither Dagster nor DVC: dvc.lock, the files and Dagster's event log are read as they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from core.code import library_versions
from lineage import statement as statements
from lineage.statement import Statement, StatementError
from resources.chain import CODE_FILE, Stage
from resources.code_versions import changed_files
from resources.dagster_log import read_latest
from resources.dvc_ledger import DvcLedger

NOT_NUMBERS = {"seconds", "reused"}
COLOURS = {"current": "green", "stale": "yellow", "missing": "red"}


@dataclass(frozen=True)
class StageStatus:
    """One stage as `stemma status` shows it."""

    stage: str
    version: str | None
    state: str  # current, stale, missing
    reasons: list[str]
    numbers: dict[str, float]
    seconds: float | None
    libraries: dict[str, str]  # versions of the libraries that its code imported when it was built
    other_libraries: dict[str, str]  # those of them that have another version now: a note, not a reason

    def as_row(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def due(ledger: DvcLedger, names: list[str], forced: set[str]) -> list[str]:
    """The stages to build: those forced, out of date or unknown to Dagster, and what follows from them."""
    chain, found = ledger.chain, []
    shown = read_latest(ledger.root, [chain.stage(name) for name in names])
    for name in names:
        follows = any(parent in found for parent in chain.upstream(name))
        known = shown[name].version == ledger.recorded(name)
        if name in forced or follows or not known or ledger.changes(name):
            found.append(name)
    return found


def chain_status(ledger: DvcLedger) -> list[StageStatus]:
    """The status of every stage, in the order of the chain. Raises WorkspaceError where code.yaml is out of date."""
    ledger.check_code()
    stages = ledger.chain.stages
    shown = read_latest(ledger.root, stages.values())
    found = []
    for name, stage in stages.items():
        recorded, reasons = ledger.recorded(name), ledger.changes(name)
        if recorded and not reasons and shown[name].version != recorded:
            reasons = ["Dagster does not know this version: run 'stemma sync'"]
        statement = _statement(ledger, name, recorded)
        metadata = shown[name].metadata
        then = statements.library_versions(statement) if statement else {}
        now = dict.fromkeys(then, "none") | library_versions(then)
        found.append(
            StageStatus(
                stage=name,
                version=recorded,
                state=_state((ledger.root / stage.out).exists(), reasons),
                reasons=[_named_files(ledger, stage, reason, statement) for reason in reasons],
                numbers={
                    label: value
                    for label, value in metadata.items()
                    if isinstance(value, int | float) and label not in NOT_NUMBERS
                },
                seconds=metadata.get("seconds"),
                libraries=then,
                other_libraries={name: version for name, version in now.items() if version != then[name]},
            )
        )
    return found


def _state(exists: bool, reasons: list[str]) -> str:
    if not exists:
        return "missing"
    return "stale" if reasons else "current"


def _statement(ledger: DvcLedger, name: str, version: str | None) -> Statement | None:
    """The provenance of a version, not validated (`stemma audit` does that); None where there is no good one."""
    try:
        return statements.load_statement(ledger.root, name, version) if version else None
    except StatementError:
        return None


def _named_files(ledger: DvcLedger, stage: Stage, reason: str, statement: Statement | None) -> str:
    """'base_model.version in code.yaml changed' as the files that changed, where the provenance tells them."""
    if f"in {CODE_FILE} changed" not in reason or statement is None:
        return reason
    files = changed_files(statements.code_hashes(statement), ledger.closure(stage))
    shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return f"its code changed: {shown}" if files else "a library that decides it has another version"


def print_status(rows: list[StageStatus], console: Any) -> None:
    """Print the status as a table, and below it which libraries are other than when a version was made."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("asset", "version", "state", "numbers", "seconds"):
        table.add_column(
            column, justify="right" if column == "seconds" else "left", no_wrap=column in ("asset", "version")
        )
    for row in rows:
        state = f"[{COLOURS[row.state]}]{row.state}[/]"
        if row.reasons:
            state += f" [dim]({row.reasons[0]})[/]"
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in list(row.numbers.items())[:4])
        seconds = "" if row.seconds is None else f"{row.seconds:,.0f}"
        table.add_row(row.stage, (row.version or "")[:8], state, numbers, seconds)
    console.print(table)
    for name, (then, now, stages) in _libraries_of(rows).items():
        console.print(f"[dim]{name} was {then} when {', '.join(stages)} was made, and is {now} here[/]")


def _libraries_of(rows: list[StageStatus]) -> dict[str, tuple[str, str, list[str]]]:
    """Version then, version now and the stages concerned, of every library that has another version now."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    for row in rows:
        for name, now in row.other_libraries.items():
            found.setdefault(name, (row.libraries[name], now, []))[2].append(row.stage)
    return found


def _short(value: float) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
