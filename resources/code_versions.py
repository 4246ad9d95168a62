"""code.yaml: which code decides each stage, in one generated and committed file.

For every asset it holds the version of the code (what DVC compares), the files that decide it with their hashes (so
that a diff shows why a version changed), and the libraries that these files import. `stemma generate` writes it;
whatever runs or judges a stage first checks that it is that of the code here, else DVC would compare old versions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.code import Closure, CodeReader, library_versions
from core.errors import ConfigError, WorkspaceError
from core.settings import check_names
from resources.chain import CODE_FILE, Chain
from resources.yaml_file import parse_yaml

CODE_CACHE = Path("work", ".cache", "code.json")
LIBRARIES_DECIDE = "stale_on_library_change"  # in the section `chain` of params.yaml
HEAD = """\
# Written by `stemma generate`; do not edit. For every asset: the version of the code that decides it, which DVC
# compares as a parameter; the files of that code by the hash of their syntax tree (comments, docstrings and formatting
# do not count); and the libraries that they import. How it is found: core/code.py.
"""


@functools.cache
def code_reader(root: Path) -> CodeReader:
    """The one reader of a project's code in this process; it remembers syntax trees in work/.cache."""
    return CodeReader(root, root / CODE_CACHE)


def render_code(root: Path, chain: Chain, params: Mapping[str, Any]) -> str:
    """What code.yaml should hold for the present code. Raises ConfigError, DataError."""
    reader, strict = CodeReader(root, root / CODE_CACHE), libraries_decide(params)
    lines = [HEAD]
    for asset, declared in chain.declared.items():
        closure = reader.closure(declared.entries)
        versions = library_versions(closure.libraries) if strict else None
        lines += [f"{asset}:", f'  version: "{closure.hash(versions)}"', "  files:"]
        lines += [f'    {path}: "{digest}"' for path, digest in closure.files.items()]
        if versions is None:
            lines += [f"  libraries: [{', '.join(closure.libraries)}]", ""]
        else:
            lines += ["  libraries:", *(f'    {name}: "{found}"' for name, found in versions.items()), ""]
    return "\n".join(lines)


def libraries_decide(params: Mapping[str, Any]) -> bool:
    """Whether another version of a library makes a stage stale: `chain.stale_on_library_change`, off by default."""
    section = params.get("chain") or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"params.yaml, chain: expected a mapping of settings, not {section!r}.")
    check_names(section, [LIBRARIES_DECIDE], "chain")
    value = section.get(LIBRARIES_DECIDE, False)
    if not isinstance(value, bool):
        raise ConfigError(f"chain.{LIBRARIES_DECIDE}: write true or false, not {value!r}.")
    return value


def check_code(root: Path, chain: Chain, params: Mapping[str, Any]) -> None:
    """Raise a WorkspaceError that says what differs unless code.yaml is that of the code here.

    A chain whose stages name no entry modules has no code.yaml and needs none.
    """
    if not any(declared.entries for declared in chain.declared.values()):
        return
    path = root / CODE_FILE
    wanted, found = render_code(root, chain, params), path.read_text("utf-8") if path.is_file() else ""
    if wanted != found:
        raise WorkspaceError(
            f"{CODE_FILE} is out of date ({_difference(parse_yaml(found), parse_yaml(wanted))}). "
            "Update it with 'stemma generate', check 'git diff code.yaml' and run again."
        )


def changed_files(recorded: Mapping[str, str], closure: Closure) -> list[str]:
    """The files of two closures that differ, by path."""
    paths = {*recorded, *closure.files}
    return sorted(path for path in paths if recorded.get(path) != closure.files.get(path))


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Which files changed, and which assets that concerns, in one line."""
    files: set[str] = set()
    assets = [asset for asset in {**found, **wanted} if found.get(asset) != wanted.get(asset)]
    for asset in assets:
        old, new = ((version.get(asset) or {}).get("files") or {} for version in (found, wanted))
        files |= {path for path in {*old, *new} if old.get(path) != new.get(path)}
    shown = sorted(files)[:5]
    more = f" and {len(files) - len(shown)} more" if len(files) > len(shown) else ""
    changed = f"{', '.join(shown)}{more}" if files else "its text or a library"
    return f"changed: {changed}; of: {', '.join(assets)}" if assets else "only its comments differ"
