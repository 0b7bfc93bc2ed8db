"""Environment variables over a parsed line.toml: `GOLDLINE_SECTION__KEY`, in the type that the key has."""

import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from pipeline.settings_check import fields_of

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
    for variable, text in sorted(longhand.items()):
        section, found, key = variable.removeprefix(prefix).lower().partition("__")
        if not variable.startswith(prefix) or not found:
            continue
        kind = fields_of(settings).get(section)
        if not (isinstance(kind, type) and issubclass(kind, Struct)) or key not in fields_of(kind):
            yield f"environment {variable}: no setting [{section}] {key}"
            continue
        wanted = fields_of(kind)[key]
        listed = [v.strip() for v in text.split(",")] if text.strip() else []
        values: object = listed if typing.get_origin(wanted) is tuple else text
        try:
            value = msgspec.to_builtins(msgspec.convert(values, wanted, strict=False))
        except msgspec.ValidationError as error:
            yield f"environment {variable}: {error} (saw {text!r})"
            continue
        if isinstance(table := tree.setdefault(section, {}), dict):  # what is no table is told of with the file
            table[key] = value
