"""Lines of a light barrier or a PLC, as they come. A read that waits for them would outlast whoever wants to stop."""

import os
import select
import stat
from collections.abc import Callable, Iterator

from pipeline.errors import ConfigError

_CHUNK = 65_536
_LONGEST = 65_536  # what is longer is no line of a trigger: it is cut
_LOOK_S = 0.2
_STANDARD_INPUT = 0


def opened(name: str) -> int:
    """A file, a FIFO, whether somebody writes to it yet or not, or `-` for standard input: its descriptor.

    Raises:
        ConfigError: it cannot be read.
    """
    if name == "-":
        return _STANDARD_INPUT
    try:
        source = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"--trigger {name}: {error.strerror}") from error
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.close(source)
        raise ConfigError(f"--trigger {name}: it is a folder")
    return source


def lines(source: int, stopped: Callable[[], bool]) -> Iterator[str]:
    """Whole lines, until the last writer has closed it or `stopped`, which is asked several times a second.

    Afterwards it is closed: who writes to a FIFO that nobody reads is told so.
    """
    try:
        yield from _lines(source, stopped)
    finally:
        if source != _STANDARD_INPUT:
            os.close(source)


def _lines(source: int, stopped: Callable[[], bool]) -> Iterator[str]:
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
