"""Pauses of the interpreter, kept short where a gate waits."""

import gc
import sys

_YOUNG = 20_000  # objects made between young collections; a frame makes a few hundred
_SWITCH_S = 0.001


def settle() -> None:
    """Call once when a process has started: what is there now is never looked through again.

    A full collection walks every object that torch and the Kafka clients made at import, tens of milliseconds in the
    middle of a frame; and a thread that computes gives way after 1 ms instead of 5.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 50, 100)
    sys.setswitchinterval(_SWITCH_S)
