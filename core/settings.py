"""Settings: a section of params.yaml becomes a frozen dataclass, or one sentence that says what is wrong with it.

A setting is a field of a dataclass: its type is checked by pydantic, its meaning by the class's own __post_init__, and
an unknown name gets the nearest known one as a suggestion. Notable: the same classes give the JSON schema of
params.yaml (`stemma generate`), with the comment beside a field as its description.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from core.errors import ConfigError, StemmaError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def read_settings(cls: type[T], section: Mapping[str, Any] | None, where: str) -> T:
    """An instance of the frozen dataclass `cls` from a section of params.yaml (None: all defaults).

    `where` names the section in errors: "base_model". Raises ConfigError for an unknown name, a value of another type,
    or whatever the class itself refuses.
    """
    from pydantic import ValidationError

    if not isinstance(section, Mapping | None):
        raise ConfigError(f"{where}: expected a mapping of settings, not {section!r}.")
    section = dict(section or {})
    check_names(section, names_of(cls), where)
    try:
        return cast(T, _adapter(cast(Any, cls)).validate_python(section))
    except ValidationError as error:
        raise _as_config_error(error, section, where) from error


def names_of(cls: type) -> list[str]:
    """The names of a settings class, in the order in which it declares them."""
    return [field.name for field in dataclasses.fields(cls) if field.init]


def check_names(section: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise ConfigError for the first name of a section that is not known, with the nearest known one."""
    known = list(known)
    for name in section:
        if name not in known:
            raise ConfigError(
                f"{where}: there is no setting called {name}.{nearest(str(name), known)} "
                f"It has: {', '.join(known) or 'none'}."
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the known name most like this one, or '' where none is."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {found[0]}?" if found else ""


@cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _as_config_error(error: ValidationError, section: Mapping[str, Any], where: str) -> StemmaError:
    """The first thing that pydantic found, as a sentence; what the class itself refused, in its own words."""
    first = error.errors()[0]
    cause = (first.get("ctx") or {}).get("error")
    if isinstance(cause, StemmaError):
        return cause
    if cause is not None:
        return ConfigError(f"{where}: {cause}")
    name = _path_of(first["loc"], section)
    return ConfigError(f"{where}: {name} is {first['input']!r}; {first['msg'].lower()}.")


def _path_of(location: tuple[int | str, ...], section: Mapping[str, Any]) -> str:
    """Where a value is in its section, without the types of a union that pydantic puts between."""
    path: list[str] = []
    here: Any = section
    for part in location:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            here = here[part]
            path.append(str(part))
    return ".".join(path or map(str, location))
