"""An engine that remembers pictures: where several models are fitted to the same ones, each is run once."""

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from pipeline.engines import Engine


class Remembered:
    """The maps that an engine made of the pictures seen last, by their pixels. One thread's.

    Args:
        engine: runs those that are new.
        most_bytes: of maps that are kept.
    """

    def __init__(self, engine: Engine, most_bytes: int) -> None:
        self._engine = engine
        self._left = most_bytes
        self._kept: OrderedDict[bytes, list[Tensor]] = OrderedDict()

    def __call__(self, images: Tensor) -> list[Tensor]:
        """As `Engine` says; the caller may change what it gets."""
        keys = [hashlib.sha256(each.contiguous().cpu().numpy().tobytes()).digest() for each in images]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = list(dict.fromkeys(key for key in keys if key not in found))
        if new or not keys:
            maps = self._engine(images[[keys.index(key) for key in new]])
            if not keys:
                return maps
            for i, key in enumerate(new):
                found[key] = [each[i].clone() for each in maps]
                self._left -= _bytes(found[key])
                self._kept[key] = found[key]
        for key in keys:
            self._kept.move_to_end(key)
        while self._left < 0 and self._kept:
            self._left += _bytes(self._kept.popitem(last=False)[1])
        return [torch.stack(layer) for layer in zip(*(found[key] for key in keys), strict=True)]


def _bytes(maps: list[Tensor]) -> int:
    return sum(each.nbytes for each in maps)
