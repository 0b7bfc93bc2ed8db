"""Which features to keep: greedy k-centre selection, as PatchCore uses it (Roth et al. 2022, algorithm 1).

Distances are taken after a random linear projection (Johnson-Lindenstrauss). The first centre is the row
farthest, on average, from ten random rows; every further one is the row farthest from all centres so far,
that average counting as the initial distance.
"""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.errors import FitError
from pipeline.neighbours import nearest
from pipeline.progress import Progress, silent
from pipeline.rounded import half_scale

_STARTS = 10
_REPORTS = 100  # progress calls in all
_BUFFER_BYTES = 8 << 20  # of products, which libraries keep for each thread
_ON_GPU = 2.5  # times the memory that `select` takes on a CPU


def select(
    features: Tensor,
    count: int,
    *,
    seed: int,
    projection: int = 128,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Rows that cover all rows: the same for the same seed, device type and features.

    Time: count * N * projection multiply-adds. Memory beyond `features`: N * (projection + 4) float32; on a GPU 2.5
    times that.

    Args:
        features: (N, D) float32.
        count: rows to keep, 1 to N.
        seed: of the projection and of the ten random rows.
        projection: dimensions in which distances are taken; D where D is not larger.
        progress: called as `progress("coreset", done, count)`, about a hundred times; on a GPU as steps are
            launched.

    Returns:
        (count,) int64 on the device of `features`: distinct rows, in the order of their choice.

    Raises:
        FitError: `count` is not within 1 to N.
    """
    n = features.shape[0]
    if not 1 <= count <= n:
        raise FitError(f"a coreset of {count} rows cannot be taken from {n}")
    generator = torch.Generator().manual_seed(seed)
    points = _project(features, projection, generator)
    norms = torch.linalg.vector_norm(points, dim=0).square_()
    starts = torch.randperm(n, generator=generator)[:_STARTS].to(features.device)

    distances = torch.empty_like(norms)
    farness = torch.zeros_like(norms)
    for start in torch.split(starts, 1):
        farness += _squared_distances(points, norms, start, out=distances).clamp_(min=0).sqrt_()
    farness.div_(len(starts)).square_()

    return _greedy(points, norms, farness, count, progress)


def most_bytes(rows: int, dim: int, count: int, *, device: torch.device, projection: int = 128) -> int:
    """Memory that features (rows, dim) and `select` of `count` take together, at most.

    That is also what their bank takes while it is prepared (`PrunedBank`).
    """
    features, bank = rows * dim, count * dim
    search = rows * (min(projection, dim) + 4) * (_ON_GPU if device.type == "cuda" else 1)
    return _BUFFER_BYTES * torch.get_num_threads() + 4 * math.ceil(max(features + search, features + bank, 6 * bank))


def extend(
    centres: Tensor,
    features: Tensor,
    count: int,
    *,
    seed: int,
    projection: int = 128,
    progress: Callable[[str, int, int], None] | None = None,
) -> Tensor:
    """Rows that cover what the centres there are do not: `select`, gone on with instead of begun.

    Args:
        centres: (M, D) float32, chosen before.
        features: (N, D) float32.
        count: rows of `features` to choose, 1 to N.
        seed: of the projection.
        projection: as in `select`.
        progress: as in `select`.

    Returns:
        (count,) int64, distinct rows of `features`, the one farthest from all centres first.

    Raises:
        FitError: `count` is not within 1 to N.
    """
    n, m = features.shape[0], centres.shape[0]
    if not 1 <= count <= n:
        raise FitError(f"a coreset of {count} rows cannot be taken from {n}")
    points = _project(torch.cat([centres, features]), projection, torch.Generator().manual_seed(seed))
    farness, _ = nearest(points[:, m:].T.contiguous(), points[:, :m].T.contiguous())
    new = points[:, m:].contiguous()
    return _greedy(new, torch.linalg.vector_norm(new, dim=0).square_(), farness.squeeze(1), count, progress)


def _greedy(
    points: Tensor,
    norms: Tensor,
    farness: Tensor,
    count: int,
    progress: Callable[[str, int, int], None] | None,
) -> Tensor:
    """The row with the largest farness, again and again; `farness` (N,), squared, becomes less around each."""
    if points.device.type == "cuda":
        try:
            return _fused(points, farness, count, progress or silent)
        except Exception as error:  # noqa: BLE001 - no compiler, no such GPU: there is another way
            warnings.warn(f"the coreset is chosen without its kernel, slower: {error}", stacklevel=2)
    return _plainly(points, norms, farness, count, progress or silent)


def _plainly(points: Tensor, norms: Tensor, farness: Tensor, count: int, progress: Progress = silent) -> Tensor:
    """`_greedy` in torch's own operations, on any device."""
    distances = torch.empty_like(norms)
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    for i in range(count):
        # Everything stays on the device: reading the index back would stall a GPU at each step.
        row = chosen[i : i + 1].copy_(farness.argmax())
        torch.minimum(farness, _squared_distances(points, norms, row, out=distances), out=farness)
        farness.index_fill_(0, row, -torch.inf)  # never twice, even where every row is the same
        if (i + 1) * _REPORTS // count > i * _REPORTS // count:
            progress("coreset", i + 1, count)
    return chosen


def _fused(points: Tensor, farness: Tensor, count: int, progress: Progress) -> Tensor:
    """`_greedy` by one kernel a step, on points rounded to float16: exact for these."""
    from pipeline.fused_greedy import farthest_in_turn  # noqa: PLC0415 - torch without CUDA comes without Triton

    scale = half_scale(float(points.abs().max()))
    p, n = points.shape
    half = torch.zeros(n, 1 << max(0, p - 1).bit_length(), dtype=torch.float16, device=points.device)
    half[:, :p] = points.T * scale
    return farthest_in_turn(half, farness * scale**2, count, progress)


def _project(features: Tensor, projection: int, generator: torch.Generator) -> Tensor:
    """(P, N), one point a column: matrix-vector products are 1.5 times faster so (measured on a CPU).

    Centred: distances stay, and smaller numbers cancel less.
    """
    dimension = features.shape[1]
    if dimension <= projection:
        points = features.T.clone(memory_format=torch.contiguous_format)
    else:
        matrix = torch.randn(dimension, projection, generator=generator) / projection**0.5
        points = matrix.T.to(features) @ features.T
    return points.sub_(points.mean(dim=1, keepdim=True))


def _squared_distances(points: Tensor, norms: Tensor, row: Tensor, *, out: Tensor) -> Tensor:
    """Squared distance of every point to the one at `row`, (N,), written to `out`."""
    centre = points.index_select(1, row).view(-1)
    torch.addmv(norms, points.T, centre, alpha=-2, out=out)
    return out.add_(norms.index_select(0, row))
