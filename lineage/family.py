"""A family tree of versions, and what an audit found about it: facts only, printed by `lineage.printing`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lineage.statement import RunFacts, StatementError, load_statement, run_facts, statement_path, subjects
from resources.dvc_ledger import DvcLedger


@dataclass(frozen=True)
class Disagreement:
    """One fact on which two of files, statement, dvc.lock, Dagster and MLflow disagree."""

    stage: str
    where: str  # a path, or the place in a ledger
    expected: str
    found: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}. {self.fix}"


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
    made: RunFacts = field(default_factory=RunFacts)  # by which run, from the statement


@dataclass
class AuditReport:
    """What an audit found: the family tree, and all disagreements."""

    targets: list[str]
    nodes: dict[str, Node] = field(default_factory=dict)
    disagreements: list[Disagreement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # intact but out of date, or not compared
    compared: list[str] = field(default_factory=list)  # the ledgers that were available for comparison
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


def read_family(root: Path, target: str) -> AuditReport:
    """The family of an asset as dvc.lock and the statements record it. Nothing is hashed or validated."""
    ledger = DvcLedger(root)
    report = AuditReport(ledger.chain.select([target]))
    for name in ledger.chain.with_upstream(report.targets):
        node = Node(name, ledger.recorded(name), ledger.chain.stage(name).out, ledger.chain.upstream(name))
        report.nodes[name] = node
        if node.version is not None:
            _add_facts(root, node, node.version)
    return report


def _add_facts(root: Path, node: Node, version: str) -> None:
    try:
        statement = load_statement(root, node.stage, version)
        node.files = len(subjects(statement))
        node.made.update(run_facts(statement))
    except StatementError as error:
        node.made["unproven"] = str(error)
    except (KeyError, TypeError, AttributeError):
        path = statement_path(Path(), node.stage, version)
        node.made["unproven"] = f"{path}: not an in-toto statement with SLSA provenance."
