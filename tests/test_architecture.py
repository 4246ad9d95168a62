"""The architecture that CONTRIBUTING.md draws is that of the code: who imports whom, without circles."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

PACKAGES = ("core", "corpus", "model", "evals", "resources", "lineage", "assets", "jobs", "commands")
ENTRY_POINTS = ("definitions", "stemma")
LONGEST = 370  # lines of a file; benchmarks and generated files apart


def modules(root: Path) -> dict[str, Path]:
    """Every module of the project by dotted name."""
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    files += [root / f"{name}.py" for name in ENTRY_POINTS]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


@pytest.fixture(scope="module")
def imports(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the project that it imports anywhere, also inside functions; not those for types only."""
    known = modules(root)
    return {name: _imported(ast.parse(path.read_text()), known) - {name} for name, path in known.items()}


def _imported(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from corpus import ledger` needs the submodule, and the package only as the way to it
            found |= below & set(known) or {node.module}
            found |= {node.module} if len(below & set(known)) < len(below) else set()
        found |= _imported(node, known)
    return found & set(known)


def table(root: Path) -> dict[str, set[str]]:
    """The import table of CONTRIBUTING.md: package -> packages that it may import."""
    text = (root / "CONTRIBUTING.md").read_text()
    rows = text.split("<!-- imports -->")[1].split("<!-- /imports -->")[0].strip().splitlines()[2:]
    found = {}
    for row in rows:
        packages, allowed = (cell.strip() for cell in row.strip("|").split("|"))
        for package in packages.replace("`", "").split(","):
            found[package.strip()] = {name.strip() for name in allowed.replace("`", "").split(",")} - {"—"}
    return found


def test_packages_import_only_what_contributing_allows(root: Path, imports):
    allowed = table(root)
    assert set(allowed) == {*PACKAGES, *ENTRY_POINTS}
    wrong = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if (package := module.split(".")[0]) != (theirs := other.split(".")[0])
        and theirs not in allowed[package]
    ]
    assert wrong == []


def test_the_table_allows_nothing_that_no_code_uses(root: Path, imports):
    used = {
        (module.split(".")[0], other.split(".")[0]) for module, others in imports.items() for other in others
    }
    spare = {(package, other) for package, others in table(root).items() for other in others} - used
    assert spare == set()


def test_no_module_imports_itself_through_others(imports):
    order: list[str] = []
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join([*path[path.index(name) :], name])
        if name not in state:
            state[name] = 1
            for other in sorted(imports[name]):
                visit(other, (*path, name))
            state[name] = 2
            order.append(name)

    for name in imports:
        visit(name, ())
    assert len(order) == len(imports)


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("dagster", {"assets", "jobs", "resources", "definitions", "lineage", "commands"}),
        ("dvc", {"resources"}),
        ("mlflow", {"resources"}),
        ("deepspeed", {"model"}),
    ],
)
def test_each_orchestration_library_stays_where_it_belongs(root: Path, library, packages):
    found = {
        name.split(".")[0]
        for name, path in modules(root).items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for imported in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
        if imported.split(".")[0] == library
    }
    assert found <= packages


def test_no_file_is_longer_than_can_be_read_at_once(root: Path):
    generated = {"corpus/extraction/prose_trees.py", "corpus/rules/languages.py"}
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=root, capture_output=True, text=True, check=True)
    long = {
        name: lines
        for name in listed.stdout.split()
        if name.split("/")[0] in PACKAGES and name not in generated and (root / name).exists()
        for lines in [len((root / name).read_text().splitlines())]
        if lines > LONGEST
    }
    assert long == {}
