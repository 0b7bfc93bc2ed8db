"""Progress of long work on standard error: what it is doing, how far it is, how long is left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline.progress import Progress as Told

_EVERY_S = 10.0


@contextmanager
def shown(console: Console | None = None) -> Iterator[Told]:
    """A callback that draws a bar for each stage; where standard error is no terminal, lines for a log."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
        return
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        known: dict[str, TaskID] = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in known:
                known[stage] = bars.add_task(stage, total=total)
            bars.update(known[stage], completed=done, total=total)

        yield told


def lines(write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Told:
    """A callback that writes how far a stage is: when it begins, and every ten seconds at most.

    Args:
        write: a line.
        clock: seconds that only grow.
    """
    begun: set[str] = set()
    told_at = clock()

    def told(stage: str, done: int, total: int) -> None:
        nonlocal told_at
        if stage in begun and clock() - told_at < _EVERY_S:
            return
        begun.add(stage)
        told_at = clock()
        write(f"{stage}: {done:,} of {total:,}")

    return told
