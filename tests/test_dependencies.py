"""What pyproject.toml declares is what the packages import, and docs/dependencies.md says why."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from core.code import PACKAGES as OURS

PACKAGES = {  # package -> the extras that it may import from, beside the core of the dependencies
    "core": {"corpus"},
    "corpus": {"corpus", "classifier", "fetch", "ray"},
    "model": {"train", "gguf", "fp8", "pipeline"},  # of the pipeline only dagster-pipes
    "evals": {"corpus", "train"},
    "assets": {"pipeline"},
    "commands": {"pipeline"},
    "jobs": {"pipeline"},
    "lineage": {"pipeline"},
    "resources": {"pipeline"},
}
# Import names whose distribution is none of ours -> the declared one that cannot be without it.
PARTS = {
    "PIL": "matplotlib",
    "conversion": "gguf",  # llama.cpp's checkout
    "dvc_data": "dvc",
    "gguf": "gguf",
    "google": "in-toto-attestation",
    "lxml": "trafilatura",
    "s3fs": "s3fs",
    "twisted": "scrapy",
    "urllib3": "requests",
}


def normal(name: str) -> str:
    """A distribution's name as indexes compare them (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def declared(root: Path) -> dict[str, list[str]]:
    """Extra -> its requirements; those of the core under ''."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def named(declared: dict[str, list[str]], extra: str, follow: bool = False) -> set[str]:
    """The distributions of an extra; with `follow` also those of our own extras that it holds."""
    found = set()
    for requirement in declared[extra]:
        name, ours = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
        if ours is None:
            found.add(normal(name))
        elif follow:
            found |= set().union(*(named(declared, other, follow) for other in ours.split(",")))
    return found


def test_every_package_is_installed_and_known_to_the_hash_of_code(root: Path):
    include = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert set(include) == {f"{name}*" for name in OURS}
    assert all((root / name / "__init__.py").is_file() for name in OURS)
    assert PACKAGES.keys() == set(OURS)


def imported(folder: Path, own: set[str]) -> dict[str, str]:
    """Top-level module -> one file that imports it, without the standard library and our own packages."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            found |= {name.split(".")[0]: str(path) for name in names}
    return {name: path for name, path in found.items() if name not in own | sys.stdlib_module_names}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_its_extras_declare(root: Path, declared, package: str):
    allowed = set().union(*(named(declared, extra, follow=True) for extra in {"", *PACKAGES[package]}))
    distributions = packages_distributions()
    undeclared = {}
    for name, path in imported(root / package, {*PACKAGES, "stemma", "definitions"}).items():
        candidates = {PARTS[name]} if name in PARTS else set(map(normal, distributions.get(name, [name])))
        if not candidates & allowed:
            undeclared[name] = path
    assert not undeclared


def test_the_page_of_dependencies_names_each_with_its_extras(root: Path, declared):
    page = {}
    for line in (root / "docs" / "dependencies.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0] not in ("package", "---"):
            extras = {extra.strip() for extra in cells[1].split(",")}
            page |= {normal(name.strip()): extras for name in cells[0].split(",")}
    every: dict[str, set[str]] = {}
    for extra in declared:
        for name in named(declared, extra):
            every.setdefault(name, set()).add(extra)
    assert page == every
