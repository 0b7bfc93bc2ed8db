"""Planted defects: pieces of a picture moved within it, to compare methods where there are good pictures alone.

CutPaste and its scars (Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", CVPR
2021), smaller than there and blended in, as theirs are to be learnt from and these to be hard to find. They are no
defects of any product: what finds more of them need not find more of a plant's. That such choices carry over to real
defects was looked at by Fung et al., "Model Selection of Anomaly Detectors in the Absence of Labeled Validation Data"
(2023).
"""

import math

import torch
from torch import Tensor

AREA = (0.005, 0.035)  # of a patch, as shares of the picture
ASPECT = 3.3  # of its sides at most
SCAR_WIDTH, SCAR_LENGTH = (0.018, 0.045), (0.054, 0.165)  # as shares of the picture's side
BRIGHTER = 0.15
OPAQUE = (0.5, 1.0)


def planted(pixels: Tensor, *, inside: Tensor | None = None, finer: int = 1, seed: int) -> Tensor:
    """Each picture with one piece of itself put elsewhere: a patch in every other one, a scar in the rest.

    Args:
        pixels: (B, 3, H, W) uint8, good parts.
        inside: (H, W) bool, where defects may lie; None for anywhere.
        finer: sides of defects are divided by it, as by the tiles of a picture's side.
        seed: the same seed plants the same.

    Returns:
        (B, 3, H, W) uint8, in memory of its own.
    """
    draw = torch.Generator().manual_seed(seed)
    height, width = pixels.shape[2:]
    places = None if inside is None else inside.nonzero()
    found = pixels.clone()
    for at, picture in enumerate(pixels):
        tall, wide = _sides(at % 2 == 1, height, width, finer, draw)
        top, left = _below(height - tall + 1, draw), _below(width - wide + 1, draw)
        if places is None:
            y, x = _below(height - tall + 1, draw), _below(width - wide + 1, draw)
        else:
            middle = places[_below(len(places), draw)].tolist()
            y = min(max(middle[0] - tall // 2, 0), height - tall)
            x = min(max(middle[1] - wide // 2, 0), width - wide)
        piece = picture[:, top : top + tall, left : left + wide].float()
        piece = (piece * _within(1 - BRIGHTER, 1 + BRIGHTER, draw)).clamp_(0, 255)
        if _below(2, draw):
            piece = piece.flip(2)
        share = _within(*OPAQUE, draw)
        below = picture[:, y : y + tall, x : x + wide].float()
        found[at, :, y : y + tall, x : x + wide] = (share * piece + (1 - share) * below).round_().to(torch.uint8)
    return found


def _sides(scar: bool, height: int, width: int, finer: int, draw: torch.Generator) -> tuple[int, int]:
    """Pixels down and across, at least 2 and at most half of the picture's."""
    if scar:
        side = math.sqrt(height * width)
        tall, wide = _within(*SCAR_WIDTH, draw) * side, _within(*SCAR_LENGTH, draw) * side
        if _below(2, draw):
            tall, wide = wide, tall
    else:
        area = _within(*AREA, draw) * height * width
        aspect = math.exp(_within(-1, 1, draw) * math.log(ASPECT))
        tall, wide = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return _fit(tall / finer, height), _fit(wide / finer, width)


def _fit(side: float, whole: int) -> int:
    return min(max(round(side), 2), whole // 2)


def _within(low: float, high: float, draw: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=draw))


def _below(count: int, draw: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=draw))
