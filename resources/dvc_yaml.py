"""Reading dvc.yaml: stages with their partitions filled in, without importing DVC (a test holds us to its resolver)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resources.stage_lock import WorkspaceError

_VARIABLE = re.compile(r"\$\{\s*([^}\s]+)\s*\}")


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml. Paths are relative to the project."""

    name: str  # cleaned_corpus@sample
    asset: str  # cleaned_corpus
    partition: str | None  # sample
    cmd: str
    template: str  # the command before ${key} was filled in: the same for every partition
    desc: str
    data_deps: tuple[str, ...]  # folders that other stages make
    code_deps: tuple[str, ...]  # everything else it reads
    params: tuple[str, ...]  # names in params.yaml
    out: str
    param_values: Mapping[str, Any] = field(hash=False, default_factory=dict)


def resolve_stages(document: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Stage]:
    """Stages by name. Understands `foreach` over a mapping or a list, ${key}, ${item} and ${params.yaml names}."""
    plain: list[tuple[str, str, str | None, str, Mapping[str, Any]]] = []
    for asset, body in (document.get("stages") or {}).items():
        for feature in ("matrix", "wdir", "vars"):
            if feature in body or feature in body.get("do", {}) or feature in document:
                raise WorkspaceError(
                    f"dvc.yaml, stage '{asset}': '{feature}' is not understood by Stemma. Spell it out."
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
    return {entry[0]: _stage(*entry, outs, params) for entry in plain}


def _stage(
    name: str,
    asset: str,
    partition: str | None,
    template: str,
    body: Mapping[str, Any],
    outs: list[str],
    params: Mapping[str, Any],
) -> Stage:
    mine = [_path_of(out) for out in body.get("outs", [])]
    if len(mine) != 1:
        raise WorkspaceError(
            f"dvc.yaml, stage '{name}': a version is one folder, so name exactly one out, not {mine}."
        )
    deps = [_path_of(dep) for dep in body.get("deps", [])]
    names = [p for p in body.get("params", []) if isinstance(p, str)]
    if len(names) != len(body.get("params", [])):
        raise WorkspaceError(
            f"dvc.yaml, stage '{name}': parameters stand in params.yaml, not in files of their own."
        )
    values = {n: _look_up(n, params) for n in names if _look_up(n, params) is not _MISSING}
    is_data = {dep: any(overlap(out, dep) for out in outs) for dep in deps}
    return Stage(
        name=name,
        asset=asset,
        partition=partition,
        cmd=str(body["cmd"]),
        template=template,
        desc=str(body.get("desc", "")),
        data_deps=tuple(d for d in deps if is_data[d]),
        code_deps=tuple(d for d in deps if not is_data[d]),
        params=tuple(names),
        out=mine[0],
        param_values=values,
    )


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
