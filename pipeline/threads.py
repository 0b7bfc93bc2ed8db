"""How many threads there may be, how many torch's own operations take, and how many of these run at once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_shared = 1


def share(threads: int, at_once: int) -> None:
    """Let this process compute so many things at once, from threads of its own, with so many threads among them all.

    To be called before a backbone is opened: its engine is made for as many.
    """
    global _shared  # noqa: PLW0603 - as torch's own number, it is the process's
    _shared = at_once
    torch.set_num_threads(max(1, threads // at_once))


def at_once() -> int:
    """How many things this process computes at once, with as many threads each as torch says."""
    return _shared


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
