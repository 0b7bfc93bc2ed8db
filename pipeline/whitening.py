"""A metric for patch features in which good ones vary alike in each direction: what seldom varies then counts as much.

With all of it distances are Mahalanobis's about the good features' covariance; here that is mixed with a round one, as
directions in which hardly anything varies are noise.
"""

import torch
from torch import Tensor

from pipeline.errors import FitError

_BLOCK = 16_384


def axes_of(rows: Tensor, share: float) -> Tensor:
    """What turns features so that distances are taken in the metric of share C + (1 - share) v I.

    Args:
        rows: (N, D) float32, good features; C is their covariance, v the mean of their variances.
        share: 0 for distances as they are, below 1.

    Returns:
        (D, D) float32, symmetric: sqrt(v) times the inverse root of that matrix, so that distances keep their size.

    Raises:
        FitError: all rows are the same.
    """
    dim = rows.shape[1]
    mean = torch.zeros(dim, dtype=torch.float64, device=rows.device)
    for block in torch.split(rows, _BLOCK):
        mean += block.sum(dim=0, dtype=torch.float64)
    mean /= len(rows)
    total = torch.zeros(dim, dim, dtype=torch.float64, device=rows.device)
    for block in torch.split(rows, _BLOCK):
        centred = block.double() - mean
        total.addmm_(centred.T, centred)
    covariance = total / len(rows)
    variance = covariance.diagonal().mean()
    if not float(variance) > 0:
        raise FitError("the good pictures' features are all the same: there is nothing to whiten")
    mixed = share * covariance
    mixed.diagonal().add_((1 - share) * variance)
    values, vectors = torch.linalg.eigh(mixed)
    axes: Tensor = (vectors * (variance / values).sqrt()) @ vectors.T
    return axes.float()


def turned(rows: Tensor, axes: Tensor) -> Tensor:
    """Rows (N, D) in that metric, in their own memory."""
    for block in torch.split(rows, _BLOCK):
        block.copy_(block @ axes)
    return rows
