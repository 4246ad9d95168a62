"""A family tree of versions: its members, what an audit found about them, and how it is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineage import provenance
from resources.dvc_ledger import DvcLedger
from resources.workspace import WorkspaceError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree


@dataclass(frozen=True)
class Disagreement:
    """One thing that two of files, statement, dvc.lock, Dagster and MLflow say differently."""

    stage: str
    where: str  # a path, or the place in a ledger
    expected: str
    found: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}. {self.mend}"


@dataclass
class Node:
    """A version in the family tree."""

    stage: str
    version: str | None
    out: str
    upstream: list[str]
    files: int = 0
    bytes: int = 0
    warc_files: int = 0  # raw files outside the folder
    made: dict[str, Any] = field(default_factory=dict)  # run facts and commit, from the statement


@dataclass
class AuditReport:
    """What an audit found: the family tree, and whatever disagrees."""

    targets: list[str]
    nodes: dict[str, Node] = field(default_factory=dict)
    disagreements: list[Disagreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # whole, but out of date or not asked
    compared: list[str] = field(default_factory=list)  # the ledgers that were there to be asked
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        return not self.disagreements

    @property
    def files(self) -> int:
        return sum(node.files + node.warc_files for node in self.nodes.values())

    @property
    def bytes(self) -> int:
        return sum(node.bytes for node in self.nodes.values())

    def to_json(self) -> str:
        """Everything, for a program."""
        content = {"agrees": self.agrees, "files": self.files, "bytes": self.bytes, **asdict(self)}
        return json.dumps(content, indent=2, ensure_ascii=False, default=str)


def find_targets(ledger: DvcLedger, target: str) -> list[str]:
    """The stages that a user means by an asset's name or a stage's."""
    stages = ledger.stages()
    if target in stages:
        return [target]
    found = [name for name, stage in stages.items() if stage.asset == target]
    if not found:
        known = ", ".join(dict.fromkeys(stage.asset for stage in stages.values()))
        raise WorkspaceError(f"There is no asset '{target}'. There are: {known}.")
    return found


def ancestors(ledger: DvcLedger, targets: list[str]) -> list[str]:
    """The targets and all that they came from, upstream first."""
    wanted, queue = set(), list(targets)
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            queue += ledger.upstream(name)
    return [name for name in ledger.in_order() if name in wanted]


def family_tree(root: Path, target: str) -> Tree:
    """The family tree of an asset as dvc.lock and the statements tell it, for printing. Nothing is hashed."""
    ledger = DvcLedger(root)
    report = AuditReport(find_targets(ledger, target))
    for name in ancestors(ledger, report.targets):
        node = Node(name, ledger.recorded(name), ledger.stage(name).out, ledger.upstream(name))
        report.nodes[name] = node
        if node.version is None:
            continue
        try:
            statement = provenance.read_statement(root, name, node.version)
        except provenance.StatementError as error:
            node.made["unproven"] = str(error)
        else:
            node.files = len(provenance.subjects(statement))
            node.made.update(facts_of(statement))
    return as_tree(report, report.targets[0])


def facts_of(statement: Mapping[str, Any]) -> dict[str, Any]:
    """Run, times, machine, commit and parameters of a version, as its statement tells them."""
    definition = statement["predicate"]["buildDefinition"]
    source = next((d for d in definition["resolvedDependencies"] if d["name"] == "source"), None)
    facts = {**provenance.run_facts(statement), "params": definition["externalParameters"]["params"]}
    if source:
        facts["commit"] = source["digest"]["gitCommit"]
        facts["dirty"] = source["annotations"]["dirty"]
    return facts


def print_tree(report: AuditReport, console: Console | None = None) -> None:
    """Print the family tree, then what disagrees and how to mend it, then one line of result."""
    from rich.console import Console
    from rich.markup import escape

    console = console or Console()
    for target in report.targets:
        console.print(as_tree(report, target))
    console.print()
    for note in report.notes:
        console.print(f"[yellow]note[/]      {escape(note)}", soft_wrap=True)
    for wrong in report.disagreements:
        console.print(f"[red]disagrees[/] [bold]{escape(wrong.where)}[/]", soft_wrap=True)
        for word, text in (("expected", wrong.expected), ("found", wrong.found), ("mend", wrong.mend)):
            console.print(f"          {word:<9}{escape(text)}", soft_wrap=True)
    read = f"{report.files:,} files, {report.bytes:,} bytes read again in {report.seconds:,.1f} s"
    compared = ", ".join(report.compared)
    if report.agrees:
        console.print(f"[green]All agree[/]: {compared}; {read}.", soft_wrap=True)
    else:
        many = len(report.disagreements)
        found = "One disagreement" if many == 1 else f"{many} disagreements"
        console.print(f"[red]{found}[/] among {compared}; {read}.", soft_wrap=True)


def as_tree(report: AuditReport, target: str) -> Tree:
    """The family of one version, itself at the root; what appears twice is unfolded once."""
    from rich.tree import Tree

    bad = {wrong.stage for wrong in report.disagreements}
    tree = Tree(_label(report.nodes[target], bad), guide_style="dim")
    unfolded: set[str] = set()

    def grow(branch: Tree, name: str) -> None:
        unfolded.add(name)
        # A model descends from its nearest parent first: the tokenizer, say, before the corpus it shares with it.
        for parent in reversed(report.nodes[name].upstream):
            node = report.nodes[parent]
            again = parent in unfolded
            leaf = branch.add(_label(node, bad) + (" [dim](as above)[/]" if again and node.upstream else ""))
            if not again:
                grow(leaf, parent)

    grow(tree, target)
    return tree


def _label(node: Node, bad: set[str]) -> str:
    from rich.markup import escape

    mark = "[red]✗[/] " if node.stage in bad else ""
    if node.version is None:
        return f"{mark}[bold]{escape(node.stage)}[/] [red]not made yet[/]"
    made = node.made
    words = [f"{node.files:,} files" if node.files != 1 else "1 file"]
    if node.warc_files:
        words.append(f"{node.warc_files:,} crawl files elsewhere")
    if made.get("finished"):
        words.append(str(made["finished"]).replace("T", " ").removesuffix("Z") + " UTC")
    if made.get("commit"):
        words.append(f"commit {made['commit'][:8]}" + (" with changes" if made.get("dirty") else ""))
    if made.get("unproven"):
        words.append("[yellow]no provenance[/]")
    version = node.version.removesuffix(".dir")[:12]
    return f"{mark}[bold]{escape(node.stage)}[/] [cyan]{version}[/] [dim]{', '.join(words)}[/]"
