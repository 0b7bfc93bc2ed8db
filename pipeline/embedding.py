"""Layers of a backbone as one map of a few dimensions: some channels, or an orthogonal projection, random or not."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipeline.errors import ArtifactError, FitError
from pipeline.fitted import check_shape
from pipeline.gaussian import RunningSums

_NEXT_TO_NOTHING = 1e-10  # of the largest variance: rounding of float32 features


def choose(channels: int, dim: int, kind: str, seed: int) -> Tensor:
    """Which channels, (d,) int64 in ascending order; or a matrix (C, d) with random orthonormal columns.

    d is `dim`, or C where that is less.
    """
    generator = torch.Generator().manual_seed(seed)
    dim = min(dim, channels)
    if chooses(kind, dim, channels):
        return torch.randperm(channels, generator=generator)[:dim].sort().values
    matrix = torch.randn(channels, dim, generator=generator, dtype=torch.float64)
    columns: Tensor = torch.linalg.qr(matrix).Q
    return columns.float()


@torch.inference_mode()
def principal(batches: Iterable[list[Tensor]], dim: int, *, locally_aware: bool) -> Tensor:
    """The axes along which the layers' values vary most, over pictures and positions; their largest entry is positive.

    In float64, about the first picture's mean, so that nothing cancels. Memory: 8 C^2 bytes, and 12 C h w.

    Args:
        batches: of each, its layers' maps (B, C_l, h_l, w_l), laid over one another as `embed` does.
        dim: d, at most C.
        locally_aware: as of `embed`.

    Returns:
        (C, d) float32, orthonormal columns.

    Raises:
        FitError: the values are not finite, or vary along fewer axes.
    """
    sums: RunningSums | None = None
    for maps in batches:
        grid = maps[0].shape[2:]
        for i in range(len(maps[0])):
            laid = [_laid(each[i : i + 1], grid, locally_aware=locally_aware) for each in maps]
            values = rows(torch.cat(laid, dim=1)).transpose(0, 1)  # (h w, 1, C): positions count as pictures
            sums = sums or RunningSums(values.mean(dim=0))
            sums.add(values)
    assert sums is not None  # noqa: S101 - there are pictures
    offset = sums.total[0] / sums.count
    covariance = sums.products[0] / sums.count - torch.outer(offset, offset)
    if not bool(covariance.isfinite().all()):
        raise FitError("the features are not finite: are these the right weights?")
    found = torch.linalg.eigh(covariance)
    along = int((found.eigenvalues > _NEXT_TO_NOTHING * found.eigenvalues[-1]).sum())
    if along < dim:
        raise FitError(f"these pictures' features vary along {along} axes: dim must be at most that, not {dim}")
    axes: Tensor = found.eigenvectors[:, -dim:]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    signed: Tensor = axes * largest.sign()
    return signed.float().contiguous()


def check(embedding: Tensor, channels: int, dim: int, kind: str) -> None:
    """Refuse what `choose` and `principal` cannot have made.

    Raises:
        ArtifactError: it could not.
    """
    dim = min(dim, channels)
    if not chooses(kind, dim, channels):
        check_shape("embedding", embedding, (channels, dim), torch.float32)
        return
    check_shape("embedding", embedding, (dim,), torch.int64)
    if int(embedding.min()) < 0 or int(embedding.max()) >= channels:
        raise ArtifactError(f"embedding names channels that the backbone, with {channels}, does not have")


def chooses(kind: str, dim: int, channels: int) -> bool:
    """Whether channels are taken as they are. Principal axes of all of them would be a rotation, to no end."""
    return kind == "random" or (kind == "principal" and dim >= channels)


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
            first = inside.stop
            if not len(chosen):
                continue
            part = each.index_select(1, chosen)
        else:
            part = torch.einsum("bchw,cd->bdhw", each, embedding[inside])
            first = inside.stop
        parts.append(_laid(part, grid, locally_aware=locally_aware))
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
