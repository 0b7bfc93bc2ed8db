"""Lines of a light barrier or a PLC, as they come. A read that waits for them would outlast whoever wants to stop."""

import os
import select
import sys
from collections.abc import Callable, Iterator

from pipeline.errors import ConfigError

_CHUNK = 65_536
_LONGEST = 65_536  # what is longer is no line of a trigger: it is cut
_LOOK_S = 0.2


def opened(name: str) -> int:
    """A file, a FIFO, whether somebody writes to it yet or not, or `-` for standard input: its descriptor.

    Raises:
        ConfigError: it cannot be read.
    """
    if name == "-":
        return sys.stdin.fileno()
    try:
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"--trigger {name}: {error.strerror}") from error


def lines(source: int, stopped: Callable[[], bool]) -> Iterator[str]:
    """Whole lines, until the last writer has closed it or `stopped`, which is asked several times a second."""
    begun = b""
    while not stopped():
        if not select.select([source], [], [], _LOOK_S)[0]:
            continue
        try:
            part = os.read(source, _CHUNK)
        except BlockingIOError:
            continue
        *whole, begun = (begun + part).split(b"\n")
        if begun and (not part or len(begun) > _LONGEST):
            whole, begun = [*whole, begun], b""
        yield from (line.decode("utf-8", "replace") for line in whole)
        if not part:
            return
