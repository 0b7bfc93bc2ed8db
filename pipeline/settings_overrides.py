"""Environment variables over a parsed line.toml: `GOLDLINE_SECTION__KEY`, in the type that the key has.

A table below a table is one name more, `GOLDLINE_KAFKA__SASL__USERNAME`: each process may have a user of its own.
"""

import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from pipeline.settings_check import fields_of, section_of, wrong

_SHORT = {"GOLDLINE_WEIGHTS": "GOLDLINE_WEIGHTS__FOLDER"}


def overrides(
    tree: dict[str, Any], settings: type[Struct], environment: Mapping[str, str], *, prefix: str
) -> Iterator[str]:
    """Lay variables over the tree; yields what is wrong with them.

    Args:
        tree: changed in place.
        settings: what it is going to be.
        environment: variables that do not begin with the prefix are left alone.
        prefix: of ours.
    """
    longhand = {_SHORT.get(variable, variable): text for variable, text in environment.items()}
    yield from _of_one_underscore(settings, environment, prefix)
    for variable, text in sorted(longhand.items()):
        *path, key = variable.removeprefix(prefix).lower().split("__")
        if not variable.startswith(prefix) or not path:
            continue
        kind = _table(settings, path)
        if kind is None or key not in fields_of(kind):
            yield f"environment {variable}: no setting [{'.'.join(path)}] {key}"
            continue
        wanted = fields_of(kind)[key]
        listed = [v.strip() for v in text.split(",")] if text.strip() else []
        values: object = listed if typing.get_origin(wanted) is tuple else text
        try:
            value = msgspec.to_builtins(msgspec.convert(values, wanted, strict=False))
        except msgspec.ValidationError as error:
            yield f"environment {variable}: {wrong(values, wanted, error)}"
            continue
        table: object = tree
        for name in path:
            table = table.setdefault(name, {}) if isinstance(table, dict) else None
        if isinstance(table, dict):  # what is no table is told of with the file
            table[key] = value


def _of_one_underscore(settings: type[Struct], environment: Mapping[str, str], prefix: str) -> Iterator[str]:
    """Settings that somebody meant."""
    for section in fields_of(settings):
        table = _table(settings, [section])
        for key, kind in fields_of(table).items() if table else ():
            if section_of(kind) is None and (meant := f"{prefix}{section}_{key}".upper()) in environment:
                yield f"environment {meant}: the setting is {prefix}{section.upper()}__{key.upper()}, two underscores"


def _table(kind: type[Struct], path: list[str]) -> type[Struct] | None:
    """The table at a path of names that are ours; None where there is none, as where people choose the names."""
    for name in path:
        field = fields_of(kind).get(name)
        found = None if typing.get_origin(field) is dict else section_of(field)
        if found is None:
            return None
        kind = found
    return kind
