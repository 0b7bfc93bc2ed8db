"""Planted defects: pieces of a picture moved within it, to compare methods where there are good pictures alone.

CutPaste and its scars (Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", CVPR
2021), smaller than there and blended in, as theirs are to be learnt from and these to be hard to find. They are no
defects of any product: what finds more of them need not find more of a plant's. Whether such choices carry over to real
defects was looked at by Fung et al., "Model Selection of Anomaly Detectors in the Absence of Labeled Validation Data"
(2023).
"""

import math

import torch
from torch import Tensor

AREA = (0.005, 0.035)  # of a patch, as shares of the area where defects may lie
ASPECT = 3.3  # of its sides at most
SCAR_WIDTH, SCAR_LENGTH = (0.018, 0.045), (0.054, 0.165)  # as shares of that area's root
BRIGHTER = 0.15
OPAQUE = (0.5, 1.0)
VISIBLE = 4.0  # grey levels that the picture changes by at least, on average where it changes
_TRIES = 30


def planted(pixels: Tensor, *, inside: Tensor | None = None, finer: int = 1, seed: int) -> Tensor:
    """Each picture with one piece of itself put elsewhere in it, a patch or a scar.

    Where no piece makes a difference that can be seen, as in a picture of one colour, the most visible one is planted.

    Args:
        pixels: (B, 3, H, W) uint8, good parts.
        inside: (H, W) bool, where defects may lie and come from; None for anywhere. Nothing else is changed.
        finer: sides of defects are divided by it, as by the tiles of a picture's side.
        seed: the same seed plants the same.

    Returns:
        (B, 3, H, W) uint8, in memory of its own.
    """
    draw = torch.Generator().manual_seed(seed)
    where = torch.ones(pixels.shape[2:], dtype=torch.bool) if inside is None else inside
    places = where.nonzero()
    found = pixels.clone()
    for at, picture in enumerate(pixels):
        most = -1.0
        for _ in range(_TRIES):
            spoilt = _with_a_defect(picture, where, places, finer, draw)
            change = (spoilt.float() - picture).abs().mean(dim=0)
            visible = float(change.sum() / (change > 0).sum().clamp(min=1))
            if visible > most:
                most, found[at] = visible, spoilt
            if most >= VISIBLE:
                break
    return found


def _with_a_defect(picture: Tensor, where: Tensor, places: Tensor, finer: int, draw: torch.Generator) -> Tensor:
    """A picture, (3, H, W), with a piece of it about one place put about another; in memory of its own."""
    height, width = where.shape
    tall, wide = (
        min(max(round(side / finer), 2), whole // 2)
        for side, whole in zip(_sides(math.sqrt(len(places)), draw), (height, width), strict=True)
    )
    (top, left), (y, x) = (
        (min(max(row - tall // 2, 0), height - tall), min(max(column - wide // 2, 0), width - wide))
        for row, column in places[torch.randint(len(places), (2,), generator=draw)].tolist()
    )
    piece = picture[:, top : top + tall, left : left + wide].float()
    piece = (piece * _within(1 - BRIGHTER, 1 + BRIGHTER, draw)).clamp_(0, 255)
    of = where[top : top + tall, left : left + wide]
    if _heads(draw):
        piece, of = piece.flip(2), of.flip(1)
    share = _within(*OPAQUE, draw)
    below = picture[:, y : y + tall, x : x + wide]
    blended = (share * piece + (1 - share) * below).round_().to(torch.uint8)
    # Outside of where defects may lie the picture may be painted over: neither take that nor change it.
    spoilt = picture.clone()
    spoilt[:, y : y + tall, x : x + wide] = torch.where(of & where[y : y + tall, x : x + wide], blended, below)
    return spoilt


def _sides(side: float, draw: torch.Generator) -> tuple[float, float]:
    """Pixels down and across, of a defect in an area with the root `side`."""
    if _heads(draw):
        scar = _within(*SCAR_WIDTH, draw) * side, _within(*SCAR_LENGTH, draw) * side
        return scar if _heads(draw) else scar[::-1]
    root = math.sqrt(_within(*AREA, draw)) * side
    aspect = math.exp(_within(-1, 1, draw) * math.log(ASPECT) / 2)
    return root * aspect, root / aspect


def _within(low: float, high: float, draw: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=draw))


def _heads(draw: torch.Generator) -> bool:
    return bool(torch.randint(2, (1,), generator=draw))
