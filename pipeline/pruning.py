"""Exact nearest rows of a large bank on a CPU: a bound in few dimensions rules out most rows, the rest is computed.

V has the bank's leading k principal axes, and r(x) is the length of what they leave of x (both from the bank's mean):

  ||q - b||^2 >= ||V q - V b||^2 + (r(q) - r(b))^2

by Pythagoras and the triangle inequality. The right side is the squared distance of (V q, r(q)) and (V b, r(b)), k + 1
numbers in place of D, so that one small matrix product bounds all distances from below. Any row's distance bounds the
smallest from above: only rows whose bound lies below it can be nearest, a few for each query where the bank's variance
is in few directions, as that of patch features is. Where it is not, there is no such bank.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.neighbours import check_shapes, nearest, rounding, squared_norms

ROWS_MIN = 768  # with fewer rows the whole product takes no longer (measured)
_KEPT = 0.95  # of the variance that the axes hold
_AXES_STEP = 32
_AXES_SHARE = 0.25  # of D: with more axes the bound costs too much
_SAMPLE = 4096  # rows that give the axes
_TILE_BYTES = 4 << 20  # of bounds, to stay in a cache
_GROUP = 32  # bounds that are looked at together: most groups have none that matters
_PAIRS = 8192  # computed at once
_CROWDED = 0.125  # of the bank that the bound leaves of a query: it goes the whole way instead


class PrunedBank:
    """A bank prepared for nearest-neighbour queries; never changed.

    Attributes:
        rows: (M, D) float32, the bank itself.
        axes: k.
    """

    def __init__(self, rows: Tensor, basis: Tensor, mean: Tensor) -> None:
        self.rows = rows
        self.axes = basis.shape[1]
        self._basis, self._mean = basis, mean
        self._norms = squared_norms(rows)
        short = self._shortened(rows)
        filled = -len(rows) % _GROUP  # with rows that are infinitely far
        self._short = functional.pad(short, (0, 0, 0, filled))
        self._short_norms = functional.pad(squared_norms(short), (0, filled), value=math.inf)
        self._largest = squared_norms(rows - mean).max()

    @classmethod
    def of(cls, rows: Tensor) -> "PrunedBank | None":
        """The bank prepared, or None where a bound would not pay: few rows, variance in many directions, a GPU.

        Args:
            rows: (M, D) float32.
        """
        count, dim = rows.shape
        if rows.device.type != "cpu" or count < ROWS_MIN:
            return None
        sample = rows[:: max(1, count // _SAMPLE)]
        mean = sample.mean(dim=0)
        centred = (sample - mean).double()
        variance, axes = torch.linalg.eigh(centred.T @ centred)
        kept = variance.flip(0).clamp_(min=0).cumsum(0)
        needed = int((kept < _KEPT * kept[-1]).sum()) + 1
        k = math.ceil(needed / _AXES_STEP) * _AXES_STEP
        if k > _AXES_SHARE * dim or not bool(kept[-1] > 0):
            return None
        return cls(rows, axes[:, -k:].float().contiguous(), mean)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The row nearest to each query.

        Args:
            queries: (N, D) float32.

        Returns:
            As `neighbours.nearest` with k = 1: squared distances (N, 1) float32 and indices (N, 1) int64.

        Raises:
            ShapeError: D differs.
        """
        check_shapes(queries, self.rows)
        short = self._shortened(queries)
        norms = squared_norms(short)
        # What rounding may take from the bound: of the projections and of the product.
        slack = 4 * rounding(self.rows.shape[1]) * (squared_norms(queries - self._mean) + self._largest)
        distances = torch.empty(len(queries), dtype=torch.float32)
        indices = torch.empty(len(queries), dtype=torch.int64)
        step = max(1, _TILE_BYTES // (4 * len(self.rows)))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            distances[part], indices[part] = self._settle(queries[part], short[part], slack[part] - norms[part])
        return distances.unsqueeze(1), indices.unsqueeze(1)

    def _settle(self, queries: Tensor, short: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """Of a few queries; `room` is by how much a bound may exceed its limit, less ||short||^2, which it lacks."""
        bounds = torch.addmm(self._short_norms.unsqueeze(0), short, self._short.T, alpha=-2)
        grouped = bounds.view(len(queries), _GROUP, -1)  # row g + k G is member k of group g, of G groups
        least = grouped.amin(dim=1)
        group = least.argmin(dim=1)
        member = grouped[torch.arange(len(queries)), :, group].argmin(dim=1)
        indices = (member * least.shape[1] + group).clamp_(max=len(self.rows) - 1)
        distances = squared_norms(self.rows.index_select(0, indices).sub_(queries))
        limit = distances + room
        query, group = (least < limit.unsqueeze(1)).nonzero(as_tuple=True)
        pair, member = (grouped[query, :, group] < limit[query].unsqueeze(1)).nonzero(as_tuple=True)
        query, row = query[pair], member * least.shape[1] + group[pair]
        left = torch.bincount(query, minlength=len(queries))
        crowded = left > _CROWDED * len(self.rows)
        if bool(crowded.any()):
            few = crowded.nonzero().squeeze(1)
            found = nearest(queries[few], self.rows, bank_norms=self._norms)
            distances[few], indices[few] = found[0].squeeze(1), found[1].squeeze(1)
            alone = ~crowded[query]
            query, row = query[alone], row[alone]
        squares = torch.empty(len(row))
        for at in range(0, len(row), _PAIRS):
            pairs = slice(at, at + _PAIRS)
            apart = self.rows.index_select(0, row[pairs]).sub_(queries.index_select(0, query[pairs]))
            squares[pairs] = squared_norms(apart)
        distances.scatter_reduce_(0, query, squares, "amin")
        ties = squares == distances[query]  # the row with the smallest index is the nearest of several
        indices.scatter_reduce_(0, query[ties], row[ties], "amin", include_self=False)
        return distances, indices

    def _shortened(self, rows: Tensor) -> Tensor:
        """(V x, r(x)) of each row x: (N, k + 1)."""
        centred = rows - self._mean
        along = centred @ self._basis
        # Not from |x|^2 - |V x|^2: where little is left, rounding would take it, and the bound with it.
        beside = torch.linalg.vector_norm(centred.addmm_(along, self._basis.T, alpha=-1), dim=1, keepdim=True)
        return torch.cat([along, beside], dim=1)
