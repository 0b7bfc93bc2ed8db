"""Whether a network in 8 bits tells good pictures apart as it does in float32.

Features may differ in what is the same for all patches: methods that compare a patch with other patches see nothing of
it. What they see is how far a patch lies from its nearest neighbour in another picture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.neighbours import nearest

DISTURBED_MAX = 0.15
"""Of distances. On four sets of pictures bfloat16 has 0.004 to 0.06 and 8 bits 0.02 to 0.11; when they had up to 0.24,
image AUROC was within 0.002 of float32's.
"""
PICTURES = 12
_ROWS_SIDE, _QUERIES_SIDE = 28, 7  # of a picture's patches, so many a side


def disturbance(truth: Sequence[Tensor], made: Sequence[Tensor]) -> float:
    """By how much distances between good patches differ, root mean square and relative; of the worst layer.

    Args:
        truth: maps (B, C, h, w) of good pictures, of each layer, B at least 2.
        made: the same pictures' from another engine.

    Returns:
        Infinity where all pictures are alike, so that nothing can be said; not a number where a feature is none.
    """
    errors = []
    for each, other in zip(truth, made, strict=True):
        expected, seen = _distances(each), _distances(other)
        size = expected.norm()
        errors.append((seen - expected).norm() / size if size > 0 else torch.tensor(torch.inf))
    return float(torch.stack(errors).max())


def _distances(maps: Tensor) -> Tensor:
    """From patches of each picture to the nearest patch of the others, (N,)."""
    rows, queries = _thinned(maps, _ROWS_SIDE), _thinned(maps, _QUERIES_SIDE)
    found = []
    for place in range(len(maps)):
        others = torch.cat([rows[:place], rows[place + 1 :]]).flatten(0, 1)
        found.append(nearest(queries[place].contiguous(), others)[0].sqrt().squeeze(1))
    return torch.cat(found)


def _thinned(maps: Tensor, side: int) -> Tensor:
    """(B, C, h, w) -> (B, N, C), about `side` x `side` places of each."""
    height, width = (max(1, -(-n // side)) for n in maps.shape[2:])
    return maps[:, :, ::height, ::width].flatten(2).transpose(1, 2)
