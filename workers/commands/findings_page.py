"""What `goldline doctor` and `goldline check` print of a finding."""

from typing import TYPE_CHECKING

import click

from workers.commands.model_page import plain

if TYPE_CHECKING:
    from workers.doctor import Finding

_COLOURS = {"pass": "green", "fail": "red", "skip": "yellow"}
_INDENT = " " * 6


def line(finding: "Finding") -> str:
    """One line, and below it what to do."""
    state = click.style(finding.state, fg=_COLOURS[finding.state])
    told = f"{state}  {finding.name}: {_folded(finding.seen)}"
    return f"{told}\n{_INDENT}do: {_folded(finding.todo)}" if finding.todo else told


def _folded(text: str) -> str:
    return f"\n{_INDENT}".join(plain(each) for each in text.splitlines())
