"""How much memory there is, said beforehand beside how much a work takes at most."""

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def available(device: torch.device) -> int | None:
    """Bytes that a process may still take; of a CPU's, within its container's limit. None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    left = [each for each in (_of_machine(), _of_container()) if each is not None]
    return min(left, default=None)


def foreseen(what: str, needed: int, device: torch.device) -> str:
    """In a line: the bound, what there is, and what to do where that is less."""
    said = f"memory: at most {_gigabytes(needed)} for {what}"
    left = available(device)
    if left is None:
        return said
    said += f"; {_gigabytes(left)} are free on this {'GPU' if device.type == 'cuda' else 'machine'}"
    return said if needed <= left else f"{said}: give fewer pictures, or more memory"


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _of_container() -> int | None:
    """Of control groups, version 2; pages of files that nobody reads now can be had back."""
    try:
        most, taken, stat = (
            (_GROUP / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current", "stat")
        )
        idle = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
        return max(0, int(most) - int(taken) + idle)
    except (OSError, ValueError):  # "max", for one: there is no limit
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 50_000_000 else f"{count / 1e6:.0f} MB"
