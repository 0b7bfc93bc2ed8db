"""Checks a parsed TOML tree against msgspec types, naming every wrong value by its path, not the first alone."""

import difflib
import typing
from typing import Any

import msgspec
from msgspec import Struct


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of line.toml."""


def fields_of(kind: type[Struct]) -> dict[str, Any]:
    """Names and types of a table's keys."""
    return {f.name: f.type for f in msgspec.structs.fields(kind)}


def section_of(kind: object) -> type[Struct] | None:
    """The table that a field holds, if it holds one."""
    for option in (kind, *typing.get_args(kind)):
        if isinstance(option, type) and issubclass(option, Struct):
            return option
    return None


def problems_of(value: object, kind: Any, path: str) -> list[str]:
    """Every wrong value under `path`, walking the tables so that one error does not hide the next."""
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        key_kind, item_kind = typing.get_args(kind)
        found = []
        for key, item in value.items():
            found += _leaf(key, key_kind, f"{path}.{key}")
            found += problems_of(item, item_kind, f"{path}.{key}")
        return found
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        item_kind = typing.get_args(kind)[0]
        return [problem for at, item in enumerate(value) for problem in _leaf(item, item_kind, f"{path}[{at}]")]
    section = section_of(kind)
    if section is None or not isinstance(value, dict):
        return _leaf(value, kind, path)
    known, found = fields_of(section), []
    required = {f.name for f in msgspec.structs.fields(section) if f.required}
    for key in sorted(required - value.keys()):
        found.append(f"{path}.{key}: is missing".lstrip("."))
    for key, item in value.items():
        where = f"{path}.{key}".lstrip(".")
        if key in known:
            found += problems_of(item, known[key], where)
        else:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            found.append(f"{where}: unknown setting; {hint}")
    return found


def wrong(value: object, kind: Any, error: msgspec.ValidationError) -> str:
    """What is wrong with a value, and what it may be."""
    if typing.get_origin(kind) is tuple and isinstance(value, str):
        return f'a list is needed, as in ["{value}"]'
    kinds = [each for each in (kind, *typing.get_args(kind)) if typing.get_origin(each) is typing.Literal]
    among = typing.get_args(kinds[0]) if kinds else ()
    said = f"choose {', '.join(among[:-1])} or {among[-1]}" if among else str(error)
    return f"{said} (saw {value!r})"


def _leaf(value: object, kind: Any, path: str) -> list[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return [f"{path.lstrip('.')}: {wrong(value, kind, error)}"]
    return []
