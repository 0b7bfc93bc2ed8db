"""Locally aware patch features of several layers, as PatchCore pools them, in closed form.

The reference unfolds 3x3 zero-padded patches, pools each layer's values to `dim`, stacks the layers and pools
to `dim` again (Roth et al. 2022, section 3.1, and its released code). Both poolings are linear: together they
are one grouped 3x3 convolution a layer, without the ninefold memory of unfolding.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data import Features, Images
from pipeline.progress import Progress

_PATCH = 9  # values of a 3x3 patch
_BATCH = 8


def feature_dim(channels: tuple[int, ...], dim: int) -> int:
    """D of the patch features of layers with that many channels."""
    return min(sum(channels), dim)


def pooling_kernels(channels: tuple[int, ...], dim: int) -> list[tuple[int, Tensor]]:
    """The reference's two adaptive poolings as one dense kernel a layer.

    A layer's C*9 patch values, channel by channel, are averaged into `dim` bins; those of all L layers, one
    after the other, are averaged into `dim` bins again. With fewer than `dim` channels in all: each channel's
    mean.

    Returns:
        By layer: the first output it adds to, and its float64 kernel (outputs, C, 3, 3). Neighbouring layers
        share an output where a bin straddles both.
    """
    count = len(channels)
    if sum(channels) < dim:
        starts = [sum(channels[:i]) for i in range(count)]
        means = [torch.eye(c, dtype=torch.float64).view(c, c, 1, 1).expand(c, c, 3, 3) / _PATCH for c in channels]
        return list(zip(starts, means, strict=True))
    kernels = []
    for layer, c in enumerate(channels):
        first, last = layer * dim // count, -(-(layer + 1) * dim // count)
        kernel = torch.zeros(last - first, c * _PATCH, dtype=torch.float64)
        for j in range(dim):
            begin, end = j * c * _PATCH // dim, -(-(j + 1) * c * _PATCH // dim)
            output = (layer * dim + j) // count
            kernel[output - first, begin:end] += 1 / (count * (end - begin))
        kernels.append((first, kernel.view(-1, c, 3, 3)))
    return kernels


def grouped(kernel: Tensor) -> tuple[Tensor, int]:
    """The same convolution in as many groups as it falls into.

    Args:
        kernel: (O, C, 3, 3).

    Returns:
        (O, C / groups, 3, 3), and groups.
    """
    outputs, c = kernel.shape[:2]
    rows, columns = kernel.abs().sum(dim=(2, 3)).nonzero(as_tuple=True)
    common = math.gcd(outputs, c)
    for groups in (g for g in range(common, 0, -1) if common % g == 0):
        if bool((rows * groups // outputs == columns * groups // c).all()):
            blocks = kernel.reshape(groups, outputs // groups, groups, c // groups, 3, 3)
            diagonal = blocks[torch.arange(groups), :, torch.arange(groups)]
            return diagonal.reshape(outputs, c // groups, 3, 3), groups
    raise AssertionError("one group always fits")


@lru_cache(maxsize=16)
def _grouped(channels: tuple[int, ...], dim: int) -> list[tuple[int, Tensor, int]]:
    """Of each layer: its first output, its float32 kernel and groups. The same for all models of a backbone."""
    with torch.inference_mode(mode=False):
        kernels = [(first, *grouped(kernel)) for first, kernel in pooling_kernels(channels, dim)]
        return [(first, kernel.float(), groups) for first, kernel, groups in kernels]


class Pooling:
    """Feature maps of several layers -> one map of locally aware features."""

    def __init__(self, channels: tuple[int, ...], dim: int, device: torch.device) -> None:
        self.dim = feature_dim(channels, dim)
        self._layers = [(first, kernel.to(device), groups) for first, kernel, groups in _grouped(channels, dim)]
        ends = [first + kernel.shape[0] for first, kernel, _ in self._layers]
        starts = [*(first for first, _, _ in self._layers[1:]), self.dim]
        self._apart = all(end == start for end, start in zip(ends, starts, strict=True))

    def __call__(self, maps: list[Tensor]) -> Tensor:
        """[(B, C, h, w), ...] -> (B, D, h, w) at the first layer's h and w."""
        size = maps[0].shape[2:]
        parts = []
        for x, (_, kernel, groups) in zip(maps, self._layers, strict=True):
            y = functional.conv2d(x, kernel, padding=1, groups=groups)
            same = y.shape[2:] == size
            parts.append(y if same else functional.interpolate(y, size=size, mode="bilinear", align_corners=False))
        if self._apart:
            return torch.cat(parts, dim=1)
        total = torch.zeros_like(parts[0][:, :1]).repeat(1, self.dim, 1, 1)
        for part, (first, kernel, _) in zip(parts, self._layers, strict=True):
            total[:, first : first + kernel.shape[0]] += part
        return total


def all_rows(images: Images, embed: Callable[[Tensor], Features], progress: Progress) -> Tensor:
    """What `embed` gives as "patch" for these pictures, as rows (N, D), one picture's after another's."""
    rows = torch.empty(0)
    for start in range(0, len(images), _BATCH):
        batch = images.pixels[start : start + _BATCH]
        patches = embed(batch).maps["patch"].permute(0, 2, 3, 1)
        each, dim = patches.shape[1] * patches.shape[2], patches.shape[3]
        if start == 0:
            rows = torch.empty(len(images) * each, dim, device=patches.device)
        end = start + batch.shape[0]
        rows[start * each : end * each] = patches.reshape(-1, dim)
        progress("features", end, len(images))
    return rows
