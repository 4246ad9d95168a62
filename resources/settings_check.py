"""All settings of params.yaml are checked before anything runs, and described for editors.

dvc.yaml names for every stage what checks its section: dataclasses, which are read as the stage itself reads them, or a
function that is called with the name and the settings of one partition (a crawl). The same dataclasses give
params.schema.json, with the comment beside each field as its description.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from core.errors import ConfigError
from core.settings import check_names, names_of, read_settings
from resources.chain import Chain
from resources.code_versions import LIBRARIES_DECIDE, libraries_decide
from resources.workspace import check_crawl_name

CRAWLS, CHAIN = "crawls", "chain"  # sections of params.yaml that belong to no single stage
SCHEMA_FILE = "params.schema.json"


def check_settings(chain: Chain, params: Mapping[str, Any]) -> None:
    """Check every section of params.yaml. Raises ConfigError for the first setting that cannot be used."""
    own = {asset: found for asset, found in chain.declared.items() if found.has_section}
    check_names(params, [CHAIN, CRAWLS, *own], "params.yaml")
    libraries_decide(params)
    for crawl in _mapping(params.get(CRAWLS), CRAWLS):
        check_crawl_name(str(crawl))
    for stage in chain.stages.values():
        if stage.asset not in own:  # its settings are those of one crawl
            for check in map(_named, stage.settings):
                check(stage.partition, (params.get(CRAWLS) or {}).get(stage.partition))
    for name, declared in own.items():
        if name not in params:
            raise ConfigError(f"params.yaml has no section '{name}'. Add '{name}: {{}}' for the defaults.")
        classes = [_named(setting) for setting in declared.settings if "=" not in setting]
        if classes:
            check_section(name, classes, params[name])
        for key, _, nested in (setting.partition("=") for setting in declared.settings):
            if nested:
                read_settings(_named(nested), (params[name] or {}).get(key), f"{name}.{key}")


def check_section(name: str, classes: list[Any], section: Mapping[str, Any] | None) -> None:
    """Check a section of params.yaml against the classes that share it. Raises ConfigError."""
    if not isinstance(section, Mapping | None):
        raise ConfigError(f"params.yaml, {name}: expected a mapping of settings, not {section!r}.")
    given = section or {}
    check_names(given, dict.fromkeys(n for cls in classes for n in names_of(cls)), name)
    for cls in classes:
        read_settings(cls, {n: value for n, value in given.items() if n in names_of(cls)}, name)


def params_schema(chain: Chain, sources: Mapping[str, type]) -> str:
    """The JSON schema (draft 2020-12) of params.yaml. `sources`: settings class of a crawl's source, by name."""
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {
        CRAWLS: {
            "description": "Crawls that make the corpus, by name.",
            "type": "object",
            "additionalProperties": {"oneOf": [_source(n, c, definitions) for n, c in sources.items()]},
        },
        CHAIN: {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                LIBRARIES_DECIDE: {
                    "type": "boolean",
                    "default": False,
                    "description": "Whether another version of a library makes the stages stale whose code imports it.",
                }
            },
        },
    }
    for asset, section in chain.declared.items():
        if not section.has_section:
            continue
        fields: dict[str, Any] = {}
        for key, _, nested in (setting.partition("=") for setting in section.settings):
            if nested:
                inner = _fields(_named(nested), definitions)
                fields[key] |= {"type": "object", "additionalProperties": False, "properties": inner}
            else:
                fields |= _fields(_named(key), definitions)
        properties[asset] = {
            "description": section.desc,
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": fields,
        }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml of Stemma",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        **({"$defs": definitions} if definitions else {}),
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _mapping(value: Any, name: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping | None):
        raise ConfigError(f"params.yaml, {name}: expected a mapping of settings, not {value!r}.")
    return value or {}


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _source(name: str, cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["source"],
        "properties": {"source": {"const": name}, **_fields(cls, definitions)},
    }


def _fields(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of each field, described by the comment beside it or by the class's docstring."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(cls).json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.get("$defs", {})
    known, notes = names_of(cls), _descriptions(cls)
    fields = {}
    for name in known:
        found = {key: value for key, value in schema["properties"][name].items() if key != "title"}
        fields[name] = found | ({"description": notes[name]} if name in notes else {})
    return fields


def _descriptions(cls: type) -> dict[str, str]:
    """What a dataclass says of its fields: the comment behind each, or `name: meaning` lines of the docstring."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _docstring_notes(base) | _comments(base)
    return found


def _docstring_notes(cls: type) -> dict[str, str]:
    """`name: meaning` lines of a docstring, continued by lines that are indented further."""
    notes: dict[str, str] = {}
    for match in re.finditer(r"^(\w+): (.+(?:\n {4,}.+)*)", inspect.getdoc(cls) or "", re.MULTILINE):
        notes[match[1]] = " ".join(match[2].split())
    return {name: note for name, note in notes.items() if name in names_of(cls)}


def _comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    lines, (tree, *_) = source.splitlines(), ast.parse(source).body
    notes = {}
    for statement in tree.body if isinstance(tree, ast.ClassDef) else ():
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.end_lineno
        ):
            behind = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
            if behind.strip().startswith("#"):
                notes[statement.target.id] = behind.strip().lstrip("# ")
    return notes
