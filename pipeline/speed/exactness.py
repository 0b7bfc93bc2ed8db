"""How near a search comes to brute force in float64."""

import torch
from torch import Tensor

from pipeline.methods.base import Detector
from pipeline.methods.patchcore import PatchCoreDetector

_BLOCK = 64


def exactness(detector: Detector, pictures: Tensor) -> tuple[float, float] | tuple[None, None]:
    """Of these pictures' patches: the share with the right nearest row, and the largest relative error of a distance.

    Args:
        detector: one without a bank has neither.
        pictures: (B, 3, H, W) uint8.
    """
    if not isinstance(detector, PatchCoreDetector):
        return None, None
    patches = detector.embed(pictures).maps["patch"]
    rows = patches.permute(0, 2, 3, 1).reshape(-1, patches.shape[1])
    squares, found = detector.match(rows)
    truth, nearest = _brute(rows.cpu().double(), detector.bank.cpu().double())
    agreement = float((found[:, 0].cpu() == nearest).double().mean())
    error = float(((squares[:, 0].cpu().double().sqrt() - truth) / truth.clamp(min=1e-12)).abs().max())
    return round(agreement, 6), error


def _brute(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    parts = [
        torch.cdist(part, bank, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
        for part in torch.split(queries, _BLOCK)
    ]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
