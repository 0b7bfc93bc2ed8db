"""Processors' time of a line's processes, as the kernel counts it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from workers import dev_broker
from workers.rig import Rig

_PROCESSES = Path("/proc")


class Busy:
    """What processes took since the last time that it was asked, by what they are for."""

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._pids = pids
        self._since = self._taken()

    @classmethod
    def of(cls, rig: Rig) -> "Busy":
        """Of a rig's workers, of its broker where that is its own, and of this process, which plays the cameras."""
        broker = dev_broker.status(rig.directory / "kafka") if (rig.directory / "kafka").is_dir() else None
        workers = [process.popen.pid for process in rig.processes]
        return cls({"workers": workers, **({"broker": [broker.pid]} if broker else {}), "cameras": [os.getpid()]})

    def seconds(self) -> dict[str, float]:
        """Of all processors together; nothing where the kernel does not say."""
        before, self._since = self._since, self._taken()
        return {name: taken - before[name] for name, taken in self._since.items() if name in before}

    def _taken(self) -> dict[str, float]:
        try:
            return {name: sum(map(taken_s, pids)) for name, pids in self._pids.items()}
        except OSError:
            return {}


def taken_s(pid: int) -> float:
    """Seconds of processors' time that a process has taken, all its threads together.

    Raises:
        OSError: there is no such process, or no kernel that says.
    """
    return seconds_of((_PROCESSES / str(pid) / "stat").read_text(encoding="ascii", errors="replace"))


def seconds_of(stat: str) -> float:
    """User's and system's time in a `stat` file of a process or a thread; its name may hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
