"""Several batches through one run of a network: models that stand on the same backbone share it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Network: TypeAlias = Callable[[Tensor], Sequence[Tensor]]
"""(B, 3, H, W) to maps (B, C, h, w), each picture by itself."""


@dataclass(slots=True, eq=False)
class _Group:
    batches: list[Tensor]
    maps: Sequence[Tensor] | None = None


class OnePass:
    """Remembers, thread by thread, which batches are to be run together, and what came of it.

    A batch is known by being the very same tensor; any other is none of it.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    @contextmanager
    def of(self, batches: Sequence[Tensor]) -> Iterator[None]:
        """Inside, on this thread, the first call with one of these batches runs the network on all of them.

        Args:
            batches: (B_i, 3, H, W), all of one size.
        """
        groups = self._groups()
        groups.append(_Group(list(batches)))
        try:
            yield
        finally:
            groups.pop()

    def run(self, network: Network, images: Tensor) -> Sequence[Tensor]:
        """What the network makes of these pictures, from the shared pass if they are part of one."""
        for group in self._groups():
            start = 0
            for batch in group.batches:
                if batch is images:
                    if group.maps is None:
                        group.maps = network(torch.cat(group.batches) if len(group.batches) > 1 else images)
                    return [each[start : start + images.shape[0]] for each in group.maps]
                start += batch.shape[0]
        return network(images)

    def _groups(self) -> list[_Group]:
        if not hasattr(self._mine, "groups"):
            self._mine.groups = []
        groups: list[_Group] = self._mine.groups
        return groups
