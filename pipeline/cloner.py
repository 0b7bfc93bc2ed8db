"""What MKD trains (Salehi et al. 2021, section 3): a narrow network that clones a large one's maps, and its loss."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from pipeline.errors import ConfigError

_NARROW = 16  # channels between the outputs


class Cloner(nn.Module):
    """A narrow VGG whose pools have the source's channels: (B, 3, H, W) -> a map for each layer."""

    def __init__(self, channels: list[int], doublings: list[int], signed: list[bool]) -> None:
        """With, by layer, its channels, how often the picture's side is halved to it, and whether it goes below 0."""
        super().__init__()
        self.stages = nn.ModuleList()
        last = 3
        outputs = dict(zip(doublings, zip(channels, signed, strict=True), strict=True))
        for depth in range(1, doublings[-1] + 1):
            width, linear = outputs.get(depth, (_NARROW, False))
            parts: list[nn.Module] = []
            for _ in range(1 if depth <= 2 else 2):
                parts += [nn.Conv2d(last, _NARROW, 3, padding=1, bias=False), nn.BatchNorm2d(_NARROW), nn.ReLU()]
                last = _NARROW
            parts += [nn.Conv2d(last, width, 3, padding=1, bias=False), *([] if linear else [nn.ReLU()])]
            self.stages.append(nn.Sequential(*parts, nn.MaxPool2d(2)))
            last = width
        self._taken = frozenset(doublings)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor) -> list[Tensor]:
        """As the class says."""
        maps = []
        for depth, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if depth in self._taken:
                maps.append(x)
        return maps


def distances(made: list[Tensor], wanted: list[Tensor], weight: float) -> Tensor:
    """L_dir + weight * L_val of each picture, summed over layers: (B,).

    L_val is the mean squared difference, L_dir one minus the cosine of the flattened maps.
    """
    total = made[0].new_zeros(made[0].shape[0])
    for mine, theirs in zip(made, wanted, strict=True):
        a, b = mine.flatten(1), theirs.flatten(1)
        total = total + (1 - cosine_similarity(a, b, dim=1)) + weight * (a - b).square().mean(dim=1)
    return total


def place_distances(made: list[Tensor], wanted: list[Tensor], weight: float, side: int) -> Tensor:
    """L_dir + weight * L_val of each place's channels, resized and summed over layers: (B, side, side).

    Means over places are L_val's, but not L_dir's: the cosine of whole maps is no mean of cosines.
    """
    total = made[0].new_zeros(made[0].shape[0], 1, side, side)
    for mine, theirs in zip(made, wanted, strict=True):
        grid = (1 - cosine_similarity(mine, theirs, dim=1)) + weight * (mine - theirs).square().mean(dim=1)
        total = total + interpolate(grid.unsqueeze(1), size=(side, side), mode="bilinear", align_corners=False)
    return total[:, 0]


def doublings_of(side: int, grids: list[torch.Size]) -> list[int]:
    """How often the side is halved, rounding down, to each grid.

    Raises:
        ConfigError: a grid is none of these, or not coarser than the one before.
    """
    found: list[int] = []
    for grid in grids:
        fitting = [d for d in range(1, 8) if (side >> d, side >> d) == tuple(grid)]
        if not fitting or (found and fitting[0] <= found[-1]):
            told = ", ".join("x".join(map(str, each)) for each in grids)
            raise ConfigError(
                f"MKD needs layers each at half the grid of a former one or less, from pictures of {side} px; these "
                f"are {told}: choose others with --layers, or a side that is a multiple of 32"
            )
        found.append(fitting[0])
    return found
