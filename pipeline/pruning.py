"""Exact nearest rows of a large bank on a CPU: bounds in few dimensions rule most rows out, the rest is computed.

V has the bank's leading k principal axes, and r(x) is the length of what they leave of x (both from the bank's mean):

  ||q - b|| >= ||s(q) - s(b)||,  s(x) = (V x, r(x))

by Pythagoras and the triangle inequality: k + 1 numbers in place of D. Of these numbers 8-bit integers are made, in
units of their own: s(x) = c i(x) + e(x), turned beforehand so that no axis needs larger integers than another. Then

  ||q - b|| >= c ||i(q) - i(b)|| - |e(q)| - |e(b)|

whose first term has no rounding at all, and is one product of small integer matrices, which a processor multiplies two
to six times as fast as floats. Any row's distance bounds the smallest from above: only rows whose bound lies below it
can be nearest. Those few are looked at again by the first bound, in floats, and what it leaves is computed in full.

The bank's integers have a bit less than the queries', so that every processor adds them up (`integers`): their units
are twice as large.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import integers
from pipeline.neighbours import check_shapes, exact_floats, nearest, squared_norms

ROWS_MIN = 768  # with fewer rows the whole product takes no longer (measured)
_KEPT = 0.98  # of the variance that the axes hold
_AXES_STEP = 32
_AXES_FEW = 256  # may be three eighths of D, more of them a quarter
_SAMPLE = 4096  # rows that give the axes
_FINER = 2  # the bank's unit, in the queries': |b|^2 - 2 q.b is then |b|^2 - q.b
_FAR = 1 << 29  # more than any squared length in integers
_TILE_BYTES = 8 << 20  # of bounds: a cache holds them; in smaller ones threads wait for each other (measured)
_TILES_SETTLED = 8  # at a time: an eighth of their bounds may be left, a pair of integers each
_GROUP = 32  # bounds that are looked at together: most groups have none that matters
_PAIRS_BYTES = 1 << 20  # of what is computed at once
_CROWDED_GROUPS, _CROWDED_ROWS = 3 / 4, 1 / 8  # of those that integers leave of a query: it goes the whole way
_FAR_OUT = 8.0  # times the median length: integers that reach so far would be too coarse for the others
_UNIT_ROUNDOFF = 2.0**-24


class PrunedBank:
    """A bank prepared for nearest-neighbour queries; never changed.

    Memory beside the rows: up to half of theirs, more where they have fewer than 86 numbers; while it is prepared four
    times theirs.

    Attributes:
        rows: (M, D) float32, the bank itself.
        axes: k.
    """

    def __init__(self, rows: Tensor, basis: Tensor, mean: Tensor) -> None:
        self.rows = rows
        self.axes = k = basis.shape[1]
        generator = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(k + 1, k + 1, generator=generator, dtype=torch.float64))[0]
        self._mean, self._basis, self._aside = mean, (basis.double() @ turn[:k]).float(), turn[k].float()
        self._norms = squared_norms(rows)
        self._short, lengths = self._shortened(rows)
        self._unit = max(float(self._short.abs().max()), 1e-30) / integers.LARGEST
        whole = (self._short / self._unit).round_()
        self._lost = torch.linalg.vector_norm(self._short - whole * self._unit, dim=1).max()
        self._error = self._float_error(lengths).max()
        filled = -len(rows) % _GROUP  # with rows that are infinitely far
        rounded = functional.pad(whole.to(torch.int8), (0, 0, 0, filled))
        norms = functional.pad(whole.square_().sum(dim=1).int(), (0, filled), value=2 * _FAR)
        self._rounded = integers.ready(rounded, norms)

    @classmethod
    def of(cls, rows: Tensor) -> "PrunedBank | None":
        """The bank prepared, or None where bounds would not pay or hold.

        That is: few rows, no variance, rows that are far out or not finite, no right product of integers, products of
        floats in less than float32 ("highest"), a GPU.

        Args:
            rows: (M, D) float32.
        """
        count, dim = rows.shape
        if rows.device.type != "cpu" or count < ROWS_MIN or not exact_floats() or not integers.multiplies():
            return None
        sample = rows[:: max(1, count // _SAMPLE)]
        mean = sample.mean(dim=0)
        centred = (sample - mean).double()
        lengths = torch.linalg.vector_norm(rows - mean, dim=1)
        if not lengths.max() <= _FAR_OUT * lengths.median():  # nor where one is not a number
            return None
        variance, axes = torch.linalg.eigh(centred.T @ centred)
        kept = variance.flip(0).clamp_(min=0).cumsum(0)
        if not bool(kept[-1] > 0):
            return None
        needed = int((kept < _KEPT * kept[-1]).sum()) + 2
        most = max(_AXES_STEP, dim // 4, min(3 * dim // 8, _AXES_FEW))
        k = min(math.ceil(needed / _AXES_STEP) * _AXES_STEP, most) - 1
        return cls(rows, axes[:, -k:].float(), mean)

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
        if not exact_floats():
            return nearest(queries, self.rows, bank_norms=self._norms)
        asked = self._asked(queries)
        distances = torch.empty(len(queries), dtype=torch.float32)
        indices = torch.empty(len(queries), dtype=torch.int64)
        crowded = torch.empty(len(queries), dtype=torch.bool)
        step = _TILES_SETTLED * self._tile
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            distances[part], indices[part], crowded[part] = self._settle(asked.part(part))
        few = crowded.nonzero().squeeze(1)
        if len(few):  # together: each product reads the whole bank
            found = nearest(queries[few], self.rows, bank_norms=self._norms)
            distances[few], indices[few] = found[0].squeeze(1), found[1].squeeze(1)
        return distances.unsqueeze(1), indices.unsqueeze(1)

    def around(self, found: Tensor, k: int) -> Tensor:
        """The k rows nearest to each of a few of the bank's own, by the bound in floats alone or, of a crowd, by none.

        Args:
            found: (N,) int64, which rows.
            k: how many, itself counted.

        Returns:
            (N, k) int64, nearest first.

        Raises:
            ShapeError: the bank has fewer than k rows.
        """
        wanted = self.rows[found]
        if k > len(self.rows) or not exact_floats():
            return nearest(wanted, self.rows, k, bank_norms=self._norms)[1]
        bounds = torch.cdist(self._short[found], self._short, compute_mode="donot_use_mm_for_euclid_dist")
        bounds -= 2 * self._error
        around = torch.empty(len(found), k, dtype=torch.int64)
        crowded = []
        for place, bound in enumerate(bounds):
            some = bound.topk(k, largest=False).indices
            longest = torch.linalg.vector_norm(self.rows[some] - wanted[place], dim=1).max() * (1 + 1e-4)
            left = (bound <= longest).nonzero().squeeze(1)
            if len(left) > _CROWDED_ROWS * len(self.rows):
                crowded.append(place)
                continue
            near = torch.linalg.vector_norm(self.rows[left] - wanted[place], dim=1)
            around[place] = left[near.topk(k, largest=False).indices]
        if crowded:  # together: each product reads the whole bank
            around[crowded] = nearest(wanted[crowded], self.rows, k, bank_norms=self._norms)[1]
        return around

    @property
    def _tile(self) -> int:
        """Queries whose bounds are computed at once."""
        return max(1, _TILE_BYTES // (4 * (len(self.rows) + _GROUP)))

    def _asked(self, queries: Tensor) -> "_Queries":
        short, lengths = self._shortened(queries)
        unit = self._unit / _FINER
        whole = (short / unit).round_().clamp_(-integers.QUERY_LARGEST, integers.QUERY_LARGEST)
        error = self._float_error(lengths) + self._error
        lost = torch.linalg.vector_norm(short - whole * unit, dim=1) + self._lost + error
        return _Queries(queries, short, whole, whole.square().sum(dim=1) / _FINER**2, lost, error)

    def _settle(self, asked: "_Queries") -> tuple[Tensor, Tensor, Tensor]:
        """Distances and indices of a few tiles of queries, and which of them are crowded: theirs mean nothing.

        What integers leave is collected first, as small operations cost by their number.
        """
        count = len(asked.rows)
        found = [self._left(asked.part(slice(at, at + self._tile)), at) for at in range(0, count, self._tile)]
        indices, distances, crowded, query, row = (torch.cat(each) for each in zip(*found, strict=True))
        query, row = _only(row != indices.index_select(0, query), query, row)
        limit = (_a_little_more(distances) + asked.error).square_()
        near = _squares(asked.short, self._short, query, row) <= limit.index_select(0, query)
        query, row = _only(near, query, row)
        squares = _squares(asked.rows, self.rows, query, row)
        first = distances.clone()
        distances.scatter_reduce_(0, query, squares, "amin")
        # The row with the smallest index is the nearest of several, but for crowds.
        indices.masked_fill_(distances < first, len(self.rows))
        query, row = _only(squares == distances.index_select(0, query), query, row)
        indices.scatter_reduce_(0, query, row, "amin")
        return distances, indices, crowded

    def _left(self, asked: "_Queries", start: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What integers say of a tile of queries, from the `start`th on.

        Bounds are squared distances of integers, in the bank's unit, without the query's norm.

        Returns:
            For each query the row with the least bound, its squared distance, and whether too much of the bank is left
            for it; and what is left of the others: of which query and which row.
        """
        bounds = self._rounded.less_products(asked.whole)
        grouped = bounds.view(len(bounds), _GROUP, -1)  # row g + k G is member k of group g, of G groups
        least = grouped.amin(dim=1)
        group = least.argmin(dim=1)
        member = grouped[torch.arange(len(bounds)), :, group].argmin(dim=1)
        indices = (member * least.shape[1] + group).clamp_(max=len(self.rows) - 1)
        distances = squared_norms(self.rows.index_select(0, indices).sub_(asked.rows))
        limit = ((_a_little_more(distances) + asked.lost) / self._unit).square_().sub_(asked.norms)
        limit = limit.clamp_(max=_FAR).floor_().to(bounds.dtype) + 1
        groups = least <= limit.unsqueeze(1)
        crowded = groups.sum(dim=1) > _CROWDED_GROUPS * least.shape[1]
        query, group = (groups & ~crowded.unsqueeze(1)).nonzero(as_tuple=True)
        within = grouped[query, :, group] <= limit.index_select(0, query).unsqueeze(1)
        pair, member = within.nonzero(as_tuple=True)
        query, row = query.index_select(0, pair), member * least.shape[1] + group.index_select(0, pair)
        many = torch.bincount(query, minlength=len(bounds)) > _CROWDED_ROWS * len(self.rows)
        if bool(many.any()):
            crowded |= many
            query, row = _only(~many.index_select(0, query), query, row)
        return indices, distances, crowded, query + start, row

    def _shortened(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(V x, r(x)) of each row x, turned: (N, k + 1); and the lengths |x| (N,)."""
        centred = rows - self._mean
        lengths = torch.linalg.vector_norm(centred, dim=1)
        along = centred @ self._basis
        # Not from |x|^2 - |V x|^2: where little is left, rounding would take it, and the bound with it.
        beside = torch.linalg.vector_norm(centred.addmm_(along, self._basis.T, alpha=-1), dim=1)
        return along.addr_(beside, self._aside), lengths

    def _float_error(self, lengths: Tensor) -> Tensor:
        """By how much s(x) may differ from what it should be: each product of k + 1 has D and k + 1 roundings."""
        dim, short = self._basis.shape
        error: Tensor = lengths * (2 * (dim + short) * math.sqrt(short) * _UNIT_ROUNDOFF)
        return error


class _Queries(NamedTuple):
    """In all numbers that they are compared by, (N, ...) each: as `PrunedBank` makes them of `rows`."""

    rows: Tensor
    short: Tensor
    whole: Tensor
    norms: Tensor
    lost: Tensor
    error: Tensor

    def part(self, which: slice) -> "_Queries":
        return _Queries(*(each[which] for each in self))


def _a_little_more(squares: Tensor) -> Tensor:
    """Distances of which these are the squares, and what rounding may have taken."""
    return squares.sqrt().mul_(1 + 1e-4)


def _only(which: Tensor, *each: Tensor) -> tuple[Tensor, ...]:
    """Of each (P,) those that `which` names, true or false: one search for them all."""
    at = which.nonzero().squeeze(1)
    return tuple(one.index_select(0, at) for one in each)


def _squares(queries: Tensor, rows: Tensor, query: Tensor, row: Tensor) -> Tensor:
    """Squared distances (P,) of pairs: of which query and which row, (P,) each."""
    squares = torch.empty(len(query))
    step = max(1, _PAIRS_BYTES // (4 * rows.shape[1]))
    for at in range(0, len(query), step):
        pairs = slice(at, at + step)
        apart = rows.index_select(0, row[pairs]).sub_(queries.index_select(0, query[pairs]))
        squares[pairs] = squared_norms(apart)
    return squares
