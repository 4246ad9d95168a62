"""The chain as a typed graph, read from dvc.yaml and params.yaml once; DVC is not imported.

A stage of dvc.yaml says what it reads, which parameters and which code decide it, and the one folder that it writes:

    tokenizer:
      cmd: python stemma.py materialize tokenizer --only
      deps: [data/cleaned_corpus, data/training_set]
      params: [tokenizer, {code.yaml: [tokenizer.version]}]
      outs: [data/tokenizer]
      meta: {entries: [model.vocabulary.train], settings: [model.vocabulary.config.TokenizerConfig]}

`meta` is Stemma's own, and DVC leaves it alone: `entries` are the modules that do the work, whose import closure is the
stage's code (core/code.py), and `settings` what checks its section of params.yaml (a dataclass, or for a crawl a
function). A stage whose output DVC does not version is a check, not an asset. A test compares this parser with DVC's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import WorkspaceError
from core.settings import nearest

PARAMS_FILE, CODE_FILE = "params.yaml", "code.yaml"
_VARIABLE = re.compile(r"\$\{\s*([^}\s]+)\s*\}")


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml, its partition filled in. Paths are relative to the project."""

    name: str  # cleaned_corpus@sample
    asset: str  # cleaned_corpus
    partition: str | None  # sample
    cmd: str
    template: str  # the command before ${key} was filled in: the same for every partition
    desc: str
    data_deps: tuple[str, ...]  # folders that other stages make
    code_deps: tuple[str, ...]  # files that it reads beside them
    params: tuple[str, ...]  # names in params.yaml, and in code.yaml
    out: str
    versioned: bool  # whether DVC keeps its output
    entries: tuple[str, ...] = ()  # modules that do the work
    settings: tuple[str, ...] = ()  # dotted names of what checks its parameters
    param_values: Mapping[str, Any] = field(hash=False, default_factory=dict)  # of params.yaml
    code_params: Mapping[str, Any] = field(hash=False, default_factory=dict)  # of code.yaml


@dataclass(frozen=True)
class Declaration:
    """What dvc.yaml says of an asset, also where it has no partition yet."""

    desc: str
    entries: tuple[str, ...]  # modules that do the work
    settings: tuple[
        str, ...
    ]  # dotted names of what checks its settings: dataclasses, or a function for a crawl's
    has_section: bool  # whether a section of params.yaml is its own


@dataclass(frozen=True)
class Chain:
    """All stages, and every question about how they are connected."""

    every: Mapping[str, Stage]  # checks too, in the order of dvc.yaml
    declared: Mapping[str, Declaration]  # by asset, without the checks

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """The stages that make a version, by name, in the order of dvc.yaml."""
        return {name: stage for name, stage in self.every.items() if stage.versioned}

    @cached_property
    def assets(self) -> list[str]:
        """The names of the assets: cleaned_corpus, not cleaned_corpus@sample."""
        return list(dict.fromkeys(stage.asset for stage in self.stages.values()))

    def stage(self, name: str) -> Stage:
        """One stage. Raises WorkspaceError naming those there are."""
        if name not in self.every:
            raise WorkspaceError(f"dvc.yaml has no stage '{name}'. It has: {', '.join(self.stages)}.")
        return self.every[name]

    def partitions(self, asset: str) -> list[Stage]:
        """The stages of an asset: one, or one a partition. Raises WorkspaceError naming the assets there are."""
        found = [stage for stage in self.stages.values() if stage.asset == asset]
        if not found:
            raise WorkspaceError(f"dvc.yaml has no stage '{asset}'. It has: {', '.join(self.assets)}.")
        return found

    def select(self, names: Iterable[str] | None) -> list[str]:
        """Stages by what a user calls them: 'tokenizer', 'cleaned_corpus' (all its crawls), 'cleaned_corpus@sample'.

        In the chain's order; None or nothing selects all. Raises WorkspaceError for a name that there is not.
        """
        wanted = list(names or self.assets)
        for name in wanted:
            if name not in self.stages and name not in self.assets:
                raise self._unknown(name)
        return [name for name, stage in self.stages.items() if name in wanted or stage.asset in wanted]

    def require_assets(self, names: Iterable[str]) -> None:
        """Raise WorkspaceError for a name whose asset dvc.yaml does not declare; its partition may be new."""
        for name in names:
            if name.partition("@")[0] not in self.declared:
                raise self._unknown(name)

    def _unknown(self, name: str) -> WorkspaceError:
        return WorkspaceError(
            f"There is no asset '{name}'. There are: {', '.join(self.declared)}."
            f"{nearest(name, [*self.declared, *self.stages])}"
        )

    def inputs(self, name: str) -> list[Stage]:
        """The stages whose outputs this one reads directly."""
        deps = self.stage(name).data_deps
        return [stage for stage in self.stages.values() if any(overlap(stage.out, dep) for dep in deps)]

    def upstream(self, name: str) -> list[str]:
        """The names of the stages whose outputs this one reads directly."""
        return [stage.name for stage in self.inputs(name)]

    def inputs_by_asset(self, name: str) -> dict[str, list[Stage]]:
        """The direct inputs by asset, in the order of the stage's dependencies."""
        found: dict[str, list[Stage]] = {}
        for dep in self.stage(name).data_deps:
            for stage in self.stages.values():
                if stage.out == dep or stage.out.startswith(f"{dep}/"):
                    found.setdefault(stage.asset, []).append(stage)
        return found

    def with_upstream(self, names: Iterable[str]) -> list[str]:
        """These stages and all that they are made from, upstream first."""
        wanted: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting += self.upstream(name)
        return [name for name in self.in_order() if name in wanted]

    def in_order(self) -> list[str]:
        """The names of all stages, upstream first, else in the order of dvc.yaml."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            for parent in self.upstream(name):
                visit(parent)
            order[name] = None

        for name in self.stages:
            if name not in order:
                visit(name)
        return list(order)


def read_chain(
    document: Mapping[str, Any], params: Mapping[str, Any], code: Mapping[str, Any] | None = None
) -> Chain:
    """The chain of a dvc.yaml, with its parameters from params.yaml and code.yaml.

    Understands `foreach` over a mapping or a list, ${key}, ${item} and ${names of params.yaml}. Raises WorkspaceError
    for what else DVC has (matrix, wdir, vars), and for a stage without exactly one output.
    """
    plain: list[tuple[str, str, str | None, str, Mapping[str, Any]]] = []
    for asset, body in (document.get("stages") or {}).items():
        for feature in ("matrix", "wdir", "vars"):
            if feature in body or feature in body.get("do", {}) or feature in document:
                raise WorkspaceError(
                    f"dvc.yaml, stage '{asset}': '{feature}' is not understood by Stemma. Write it out."
                )
        if "foreach" not in body:
            plain.append((asset, asset, None, str(body["cmd"]), _fill(body, params)))
            continue
        over = _fill(body["foreach"], params) or {}
        pairs = over.items() if isinstance(over, Mapping) else [(str(item), item) for item in over]
        for key, item in pairs:
            context = {**params, "item": item, **({"key": key} if isinstance(over, Mapping) else {})}
            filled = _fill(body["do"], context)
            plain.append((f"{asset}@{key}", asset, str(key), str(body["do"]["cmd"]), filled))
    outs = [_path_of(out) for _, _, _, _, body in plain for out in body.get("outs", [])]
    values = {PARAMS_FILE: params, CODE_FILE: code or {}}
    return Chain({entry[0]: _stage(*entry, outs, values) for entry in plain}, _declarations(document))


def _declarations(document: Mapping[str, Any]) -> dict[str, Declaration]:
    found = {}
    for asset, outer in (document.get("stages") or {}).items():
        body = outer.get("do", outer)
        meta = body.get("meta") or {}
        if all(map(_is_versioned, body.get("outs", []))):
            found[asset] = Declaration(
                desc=str(body.get("desc", "")),
                entries=tuple(meta.get("entries", ())),
                settings=tuple(meta.get("settings", ())),
                has_section=asset in body.get("params", []),
            )
    return found


def _is_versioned(out: str | Mapping[str, Any]) -> bool:
    return isinstance(out, str) or bool(next(iter(out.values())).get("cache", True))


def _stage(
    name: str,
    asset: str,
    partition: str | None,
    template: str,
    body: Mapping[str, Any],
    outs: list[str],
    values: Mapping[str, Mapping[str, Any]],
) -> Stage:
    mine = body.get("outs", [])
    if len(mine) != 1:
        raise WorkspaceError(
            f"dvc.yaml, stage '{name}': a version is one folder, so name exactly one out, "
            f"not {list(map(_path_of, mine))}."
        )
    deps = [_path_of(dep) for dep in body.get("deps", [])]
    names = _param_names(name, body.get("params", []))
    is_data = {dep: any(overlap(out, dep) for out in outs) for dep in deps}
    meta = body.get("meta") or {}
    return Stage(
        name=name,
        asset=asset,
        partition=partition,
        cmd=str(body["cmd"]),
        template=template,
        desc=str(body.get("desc", "")),
        data_deps=tuple(d for d in deps if is_data[d]),
        code_deps=tuple(d for d in deps if not is_data[d]),
        params=tuple(n for file in names.values() for n in file),
        out=_path_of(mine[0]),
        versioned=_is_versioned(mine[0]),
        entries=tuple(meta.get("entries", ())),
        settings=tuple(meta.get("settings", ())),
        param_values=_found(names[PARAMS_FILE], values[PARAMS_FILE]),
        code_params=_found(names[CODE_FILE], values[CODE_FILE]),
    )


def _param_names(stage: str, params: Iterable[str | Mapping[str, list[str]]]) -> dict[str, list[str]]:
    """Names of parameters by file: a plain name is one of params.yaml."""
    names: dict[str, list[str]] = {PARAMS_FILE: [], CODE_FILE: []}
    for entry in params:
        for file, found in ({PARAMS_FILE: [entry]} if isinstance(entry, str) else entry).items():
            if file not in names:
                raise WorkspaceError(
                    f"dvc.yaml, stage '{stage}': parameters are in {PARAMS_FILE} (code versions in {CODE_FILE}), "
                    f"not in {file}."
                )
            names[file] += found
    return names


def _found(names: Iterable[str], context: Mapping[str, Any]) -> dict[str, Any]:
    return {n: value for n in names if (value := _look_up(n, context)) is not _MISSING}


_MISSING = object()


def _look_up(name: str, context: Any) -> Any:
    for part in name.split("."):
        if isinstance(context, Mapping) and part in context:
            context = context[part]
        else:
            return _MISSING
    return context


def _fill(value: Any, context: Mapping[str, Any]) -> Any:
    """Replace ${name} everywhere in a piece of dvc.yaml."""
    if isinstance(value, Mapping):
        return {_fill(key, context): _fill(item, context) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, context) for item in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> Any:
        result = _look_up(match[1], context)
        if result is _MISSING:
            raise WorkspaceError(
                f"dvc.yaml: {match[0]} names nothing in params.yaml. Add it, or correct the name."
            )
        return result

    whole = _VARIABLE.fullmatch(value)
    return found(whole) if whole else _VARIABLE.sub(lambda match: str(found(match)), value)


def _path_of(entry: str | Mapping[str, Any]) -> str:
    """A dependency or output is a path, or a path with options."""
    return os.path.normpath(entry if isinstance(entry, str) else next(iter(entry)))


def overlap(one: str, other: str) -> bool:
    """Whether one path is the other or lies within it."""
    a, b = Path(one), Path(other)
    return a == b or a in b.parents or b in a.parents
