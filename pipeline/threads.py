"""How many threads there may be, how many torch's own operations take, and how many of these run at once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_shared: tuple[int, int] | None = None


def share(threads: int, at_once: int) -> None:
    """Let this process compute so many things at once, from threads of its own, with so many threads among them all.

    To be called before a backbone is opened: its engine is made for as many.

    Args:
        threads: at least one for each.
        at_once: how many things.
    """
    global _shared  # noqa: PLW0603 - as torch's own number, it is the process's
    _shared = (threads, at_once) if at_once > 1 else None
    torch.set_num_threads(threads // at_once)


def shared() -> tuple[int, int]:
    """How many threads this process computes with in all, and how many things at once."""
    return _shared or (torch.get_num_threads(), 1)


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Inside, so many in this process.

    With one, thousands of small products never wait for a thread that a busy machine has put aside: two cores under
    load took 225 ms for PaDiM's 256 triangular solves with two threads, 5 ms with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
