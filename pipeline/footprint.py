"""What a model takes in memory beside what it shares with others."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from pipeline.backbone import Backbone


def footprint(root: object) -> int:
    """Bytes of all tensors and arrays that an object of this package reaches, each buffer once.

    Banks, the short forms that a search keeps of them, factors, networks of a method's own. A backbone, whose weights
    models share, counts for its `own_bytes`. What only a foreign object holds is left out: other compiled networks,
    recorded graphs.
    """
    buffers: dict[tuple[str, int], int] = {}
    seen: set[int] = set()
    left: list[Any] = [root]
    while left:
        here = left.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, Backbone):
            buffers["backbone", id(here)] = here.own_bytes
        elif isinstance(here, Tensor):
            at, taken = _buffer(here)
            buffers[at] = taken
        elif isinstance(here, np.ndarray):
            owner = here if here.base is None else here.base
            buffers["array", id(owner)] = getattr(owner, "nbytes", here.nbytes)
        elif isinstance(here, nn.Module):
            left += [*here.parameters(), *here.buffers()]
        elif isinstance(here, Mapping):
            left += here.values()
        elif isinstance(here, list | tuple):
            left += here
        elif type(here).__module__.split(".", 1)[0] == __package__:
            left += _attributes(here)
    return sum(buffers.values())


def _buffer(of: Tensor) -> tuple[tuple[str, int], int]:
    """Which one, and its bytes."""
    if of.is_mkldnn:  # in tiles, without a storage that torch would show: what fills the last of them is left out
        return ("packed", id(of)), of.nbytes
    storage = of.untyped_storage()
    return (str(of.device), storage.data_ptr()), storage.nbytes()


def _attributes(of: object) -> list[Any]:
    slots = [name for kind in type(of).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*getattr(of, "__dict__", {}).values(), *(getattr(of, name) for name in slots if hasattr(of, name))]
