"""Layers of a backbone as one map of a few dimensions: a choice of channels, or a random orthogonal projection."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.errors import ArtifactError
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
def embed(maps: list[Tensor], embedding: Tensor) -> Tensor:
    """[(B, C, h_l, w_l), ...] -> (B, d, h, w) at the first layer's h and w, deeper layers repeated (nearest)."""
    grid = maps[0].shape[2:]
    parts, first = [], 0
    for each in maps:
        inside = slice(first, first + each.shape[1])
        if embedding.dim() == 1:  # channels are chosen before they are repeated
            chosen = embedding[(embedding >= inside.start) & (embedding < inside.stop)] - first
            part = each.index_select(1, chosen)
        else:
            part = torch.einsum("bchw,cd->bdhw", each, embedding[inside])
        parts.append(part if part.shape[2:] == grid else interpolate(part, size=grid, mode="nearest"))
        first = inside.stop
    return torch.cat(parts, dim=1) if embedding.dim() == 1 else torch.stack(parts).sum(dim=0)


def rows(patches: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, h w, d)."""
    return patches.flatten(2).transpose(1, 2)
