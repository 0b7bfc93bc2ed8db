"""How long work says how far it is."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""


def silent(stage: str, done: int, total: int) -> None:
    """The callback that shows nothing."""
