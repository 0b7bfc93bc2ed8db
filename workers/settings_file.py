"""Which settings file the command that runs was given: messages name it, in the commands that they say to type."""

import shlex
from pathlib import Path

import click

DEFAULT = "line.toml"

_KEY = "goldline.settings_file"


def remember(path: Path) -> None:
    """The command that runs reads its settings from there."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_KEY] = str(path)


def named() -> str:
    """The file; `line.toml` where no command runs, or where it was given none."""
    context = click.get_current_context(silent=True)
    return str(context.meta.get(_KEY, DEFAULT)) if context else DEFAULT


def option() -> str:
    """`--config FILE`, as a shell takes it."""
    return f"--config {shlex.quote(named())}"
