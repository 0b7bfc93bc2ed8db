"""Layers of a backbone as one map of a few dimensions: some channels, or an orthogonal projection, random or not."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipeline.errors import ArtifactError, FitError
from pipeline.fitted import check_shape


def choose(channels: int, dim: int, kind: str, seed: int) -> Tensor:
    """Which channels (`kind` is "random"), (d,) int64 in ascending order; or a matrix (C, d) with orthonormal columns.

    d is `dim`, or C where that is less.
    """
    generator = torch.Generator().manual_seed(seed)
    dim = min(dim, channels)
    if kind == "random":
        return torch.randperm(channels, generator=generator)[:dim].sort().values
    matrix = torch.randn(channels, dim, generator=generator, dtype=torch.float64)
    columns: Tensor = torch.linalg.qr(matrix).Q
    return columns.float()


@torch.inference_mode()
def principal(batches: Iterable[list[Tensor]], dim: int, *, locally_aware: bool) -> Tensor:
    """The axes along which the layers' values vary most, over pictures and positions: (C, d), orthonormal columns.

    Args:
        batches: of each, its layers' maps (B, C_l, h_l, w_l), laid over one another as `embed` does.
        dim: d, or C where that is less.
        locally_aware: as of `embed`.

    Raises:
        FitError: the values are not finite.
    """
    count = 0
    total = products = torch.zeros((), dtype=torch.float64)
    for maps in batches:
        grid = maps[0].shape[2:]
        values = rows(torch.cat([_laid(each, grid, locally_aware=locally_aware) for each in maps], dim=1)).flatten(0, 1)
        total = total + values.sum(dim=0)
        products = products + values.T @ values
        count += len(values)
    covariance = products / count - torch.outer(total, total) / count**2
    if not bool(covariance.isfinite().all()):
        raise FitError("the features are not finite: are these the right weights?")
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors[:, -dim:].float().contiguous()


def check(embedding: Tensor, channels: int, dim: int, kind: str) -> None:
    """Refuse what `choose` cannot have made.

    Raises:
        ArtifactError: it could not.
    """
    dim = min(dim, channels)
    if kind != "random":
        check_shape("embedding", embedding, (channels, dim), torch.float32)
        return
    check_shape("embedding", embedding, (dim,), torch.int64)
    if int(embedding.min()) < 0 or int(embedding.max()) >= channels:
        raise ArtifactError(f"embedding names channels that the backbone, with {channels}, does not have")


@torch.inference_mode()
def embed(maps: list[Tensor], embedding: Tensor, *, locally_aware: bool = False) -> Tensor:
    """[(B, C, h_l, w_l), ...] -> (B, d, h, w) at the first layer's h and w, deeper layers repeated (nearest).

    With `locally_aware` each layer's 3x3 means, zeros around it, and deeper layers interpolated, as PatchCore has them.
    """
    grid = maps[0].shape[2:]
    parts, first = [], 0
    for each in maps:
        inside = slice(first, first + each.shape[1])
        if embedding.dim() == 1:  # channels are chosen before they are repeated
            chosen = embedding[(embedding >= inside.start) & (embedding < inside.stop)] - first
            part = each.index_select(1, chosen)
        else:
            part = torch.einsum("bchw,cd->bdhw", each, embedding[inside])
        parts.append(_laid(part, grid, locally_aware=locally_aware))
        first = inside.stop
    return torch.cat(parts, dim=1) if embedding.dim() == 1 else torch.stack(parts).sum(dim=0)


def _laid(part: Tensor, grid: torch.Size, *, locally_aware: bool) -> Tensor:
    """(B, C, h_l, w_l) at the first layer's grid."""
    if not locally_aware:
        return part if part.shape[2:] == grid else interpolate(part, size=grid, mode="nearest")
    means = avg_pool2d(part, 3, stride=1, padding=1)
    return means if part.shape[2:] == grid else interpolate(means, size=grid, mode="bilinear", align_corners=False)


def rows(patches: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, h w, d)."""
    return patches.flatten(2).transpose(1, 2)
