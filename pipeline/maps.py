"""Anomaly maps: from a feature grid to the picture's size, and smoothed."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data import Size


def upsample(grid: Tensor, size: Size) -> Tensor:
    """Bilinear (align_corners=False): (B, h, w) -> (B, H, W)."""
    return functional.interpolate(grid.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def smoothed(grid: Tensor, size: Size, sigma: float) -> Tensor:
    """`smooth(upsample(grid, size), sigma)`, to rounding: both are linear, axis by axis, and go as one matrix each.

    Args:
        grid: (B, h, w) float32.
        size: (H, W) of the map.
        sigma: standard deviation in pixels of the map; 0 smooths nothing.

    Returns:
        (B, H, W) float32.
    """
    down, across = (
        _onto(n, long, sigma, grid.dtype, grid.device) for n, long in zip(grid.shape[1:], size, strict=True)
    )
    return down @ (grid @ across.T)


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def _onto(cells: int, pixels: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(H, h): what each cell of an axis does to its pixels."""
    each = torch.eye(cells, dtype=torch.float64).unsqueeze(2)  # a column with one cell that is 1
    return smooth(upsample(each, (pixels, 1)), sigma).squeeze(2).T.to(device, dtype).contiguous()


def smooth(score_map: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, equal to `scipy.ndimage.gaussian_filter` with its defaults (reflected edges, 4 sigma).

    Args:
        score_map: (B, H, W) float32; left as it is.
        sigma: standard deviation in pixels of the map; 0 leaves everything as it is.

    Returns:
        (B, H, W) float32.
    """
    if sigma <= 0:
        return score_map
    taps = _gaussian(sigma, score_map.dtype, score_map.device)
    radius = taps.numel() // 2
    x = score_map.unsqueeze(1)
    x = functional.conv2d(_reflect(x, 2, radius), taps.view(1, 1, -1, 1))
    return functional.conv2d(_reflect(x, 3, radius), taps.view(1, 1, 1, -1)).squeeze(1)


def _reflect(x: Tensor, dim: int, radius: int) -> Tensor:
    """Pad both ends of an axis by (d c b a | a b c d | d c b a); torch's own mode leaves the edge out."""
    n = x.shape[dim]
    at = torch.arange(-radius, n + radius, device=x.device).remainder_(2 * n)
    return x.index_select(dim, torch.minimum(at, 2 * n - 1 - at))


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _gaussian(sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights from -4 sigma to 4 sigma, kept where they are used: a GPU is waited for at each copy to it."""
    offsets = torch.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return (weights / weights.sum()).to(device, dtype)


def opened(score_map: Tensor) -> Tensor:
    """Grey opening with a 3x3 cross, which is what OpenCV calls an ellipse of that size: (B, H, W) -> (B, H, W)."""
    return _highest(-_highest(-score_map))


def _highest(score_map: Tensor) -> Tensor:
    """The largest of each pixel and its four neighbours, those there are."""
    wide = functional.pad(score_map, (1, 1, 1, 1), value=-torch.inf)
    height, width = score_map.shape[1:]
    shifts = ((0, 1), (1, 0), (1, 2), (2, 1))
    best = score_map
    for y, x in shifts:
        best = torch.maximum(best, wide[:, y : y + height, x : x + width])
    return best
