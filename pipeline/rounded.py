"""Exact nearest rows of a bank on a GPU: products of numbers rounded to float16 rule out, float32 settles.

Rows x, from the bank's mean, vary most along few axes V: x = V t + y, t = V'x. What float16 lacks of t is kept as a
second float16, of y it is given up: t = t1 + t2 + ..., y = h + r, so that

  q.b = h.h + t2.t1 + t1.t2 + t1.t1,  within |r||y| + |h||r| + s |h||h| + a (|q| + 1)(|b| + 1) (Cauchy, Schwarz)

which is one product of D + 3k columns. V holds most of a row's length, as a rule, and y little, of which a float16's 11
bits are enough. s is what sums of the first columns err by, a is small: sums of the last k columns, what two float16
lack of t, and what lies in y along V and in V'V beside 1, as V is float32. ||b||^2 less twice that product and that
error is a lower bound of ||b||^2 - 2 q.b. The row with the least bound is proposed; it is the nearest if its distance,
taken by direct differences, is below the second least bound. Queries of which that is not so are searched in float32.
Distances are always float32's, and what float32's own sums may err by is what is likely, as in `neighbours`. Rows are
taken times a power of two that keeps float16 from overflowing: a query that does all the same is one of those that are
left.
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pipeline.devices import wait_for
from pipeline.errors import ShapeError
from pipeline.neighbours import check_shapes, exact_floats, nearest, rounding, squared_norms

Propose: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Queries (N, C) and a bank (M, C), float16, its squared norms (M,), spreads (N,) and lengths (M,), float32, to each
query's least and second least of norm - 2 q.b - spread length, (N,) float32, summed in float32, and the row that has
the least, (N,) int64."""

_AXES = 16  # k: each is three columns more
_STEPS = 4  # towards the axes
_LARGEST = 256.0  # of scaled values
_EXPONENT_MOST = 60  # of a scale, whose square is taken in float32
_UNIT_ROUNDOFF = 2.0**-24
_HALF_ROUNDOFF = 2.0**-11
_BALANCE = 2.0**-6  # the root of what float16 takes, about
_BLOCK_BYTES = 1 << 30  # of a product
_TRIAL_QUERIES = 784  # patches of a picture of 224 x 224
_TRIAL_MOST = 64 * _TRIAL_QUERIES  # of a batch


class _Split(NamedTuple):
    """Scaled rows x = V t + y for products of float16.

    Attributes:
        t1: (N, k) float16, t.
        t2: (N, k) float16, what it lacks of t.
        h: (N, D) float16, y.
        length: (N,) float32, |x|.
        kept: (N,) float32, no less than |y| and |h|.
        lost: (N,) float32, |y - h|.
    """

    t1: Tensor
    t2: Tensor
    h: Tensor
    length: Tensor
    kept: Tensor
    lost: Tensor


class RoundedBank:
    """A bank prepared for nearest-neighbour queries; never changed.

    Memory: beside the rows 2 bytes a value of theirs, 108 a row, and 8 a row for each neighbour; while it is prepared
    18 a value, and 1 GiB for the neighbours.

    Attributes:
        rows: (M, D) float32, the bank itself.
    """

    def __init__(self, rows: Tensor, propose: Propose, neighbours: int = 0) -> None:
        self.rows = rows
        self._propose = propose
        dim = rows.shape[1]
        k = min(_AXES, dim)
        self._mean = rows.mean(dim=0)
        centred = rows - self._mean
        self._scale = half_scale(float(centred.abs().max()))
        self._axes = _leading_axes(centred * self._scale, k)
        small_sums = _sums(dim + 2 * k)
        # Tensor cores may take the last k columns with some before them.
        relative = _sums(k + 16) + 2 * _HALF_ROUNDOFF * small_sums + 20 * _UNIT_ROUNDOFF + rounding(dim)
        self._relative, self._small_sums = math.sqrt(relative), math.sqrt(small_sums)
        split = self._split(rows)
        # The large products last: sums are small until then.
        self._bank = torch.cat([split.h, split.t1, split.t2, split.t1], dim=1)
        self._norms, self._whole_norms = split.length.square(), squared_norms(rows)
        self._lengths = self._errors(split)
        self._of_norms = 4 * _UNIT_ROUNDOFF * split.length.max() / self._relative
        del split
        self._around = rows.new_empty(len(rows), 0, dtype=torch.int64)
        if neighbours:  # of rows less their mean: float32 then tells more of them apart
            self._around = nearest(centred, centred, neighbours)[1]

    @classmethod
    def of(cls, rows: Tensor, neighbours: int = 0) -> "RoundedBank | None":
        """The bank prepared, with what proposes fastest there.

        None on a CPU, where rows are not finite, and where nothing proposes.

        Args:
            rows: (M, D) float32.
            neighbours: of each of the bank's own rows, that `around` is to know; at most M.
        """
        if rows.device.type != "cuda" or not rows.isfinite().all():
            return None
        bank, took = cls(rows, by_product, neighbours), dict[Propose, float]()
        for propose in (by_fused_kernel, by_product):
            try:
                took[propose] = bank._seconds(propose)
            except Exception as error:  # noqa: BLE001 - no compiler, no such GPU, no memory: there is another way
                warnings.warn(f"the bank is not searched {propose.__name__}: {error}", stacklevel=2)
        if not took:
            return None
        bank._propose = min(took, key=took.__getitem__)
        return bank

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The row nearest to each query. The host waits for the GPU once, and again where queries are left.

        Args:
            queries: (N, D) float32.

        Returns:
            As `neighbours.nearest` with k = 1: squared distances (N, 1) float32 and indices (N, 1) int64.

        Raises:
            ShapeError: D differs.
        """
        check_shapes(queries, self.rows)
        if not exact_floats():
            return nearest(queries, self.rows, bank_norms=self._whole_norms)
        distances, indices, sure = self._proposed(queries)
        left = (~sure).nonzero().squeeze(1)
        if len(left):
            settled = nearest(queries[left], self.rows, bank_norms=self._whole_norms, near_ties=True)
            distances[left], indices[left] = settled[0].squeeze(1), settled[1].squeeze(1)
        return distances.unsqueeze(1), indices.unsqueeze(1)

    def settles(self, queries: Tensor) -> Tensor:
        """Which queries (N, D) need no search in float32: (N,) bool."""
        return self._proposed(queries)[2]

    def around(self, found: Tensor, k: int) -> Tensor:
        """The k rows nearest to each of a few of the bank's own, which were looked for beforehand.

        Args:
            found: (N,) int64, which rows.
            k: how many, itself counted.

        Returns:
            (N, k) int64, nearest first.

        Raises:
            ShapeError: so many were not looked for.
        """
        if k > self._around.shape[1]:
            raise ShapeError(f"{k} neighbours asked of a bank that knows {self._around.shape[1]} of each row's")
        return self._around[found, :k]

    def _proposed(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances to the rows proposed (N,), these rows (N,), and which of them are sure to be the nearest (N,)."""
        split = self._split(queries)
        asked = torch.cat([split.h, split.t2, split.t1, split.t1], dim=1)
        spreads = 2 * self._errors(split) + self._of_norms
        _, second, indices = self._propose(asked, self._bank, self._norms, spreads, self._lengths)
        distances = self._apart(queries, indices)
        norms, exact = split.length.square(), distances * self._scale**2
        # Float32 takes the mean off, and sums squares, with an error of its own.
        slack = rounding(queries.shape[1]) * (norms + exact)
        # What overflows float16 makes its products no numbers, or without bounds: nothing is sure then.
        return distances, indices, exact + slack < second + norms

    def _split(self, rows: Tensor) -> _Split:
        scaled = torch.add(-self._scale * self._mean, rows, alpha=self._scale)
        t = scaled @ self._axes
        y = torch.addmm(scaled, t, self._axes.T, alpha=-1)
        t1, h = t.half(), y.half()
        length, rest = (torch.linalg.vector_norm(each, dim=1) for each in (scaled, y))
        lost = torch.linalg.vector_norm(y.sub_(h), dim=1)
        return _Split(t1=t1, t2=t.sub_(t1).half(), h=h, length=length, kept=rest + lost, lost=lost)

    def _errors(self, split: _Split) -> Tensor:
        """(N,), so that a query's times a row's is no less than what the product of both may be wrong by.

        That is a sum of products of a length of the query and one of the row, hence at most the product of the two
        vectors' lengths (Cauchy, Schwarz).
        """
        lengths: Tensor = torch.linalg.vector_norm(
            torch.stack(
                [
                    self._relative * (split.length + 1),  # float16's smallest steps are no share of what they are of
                    self._small_sums * split.kept,
                    split.lost / _BALANCE,  # meets what the other keeps
                    split.kept * _BALANCE,
                ]
            ),
            dim=0,
        )
        return lengths

    def _apart(self, queries: Tensor, indices: Tensor) -> Tensor:
        return squared_norms(self.rows.index_select(0, indices).sub_(queries))

    def _seconds(self, propose: Propose) -> float:
        """How long proposals for a full batch take that way, once all of it is compiled.

        One picture's take that way or the other as long as their launches do.
        """
        many = torch.arange(_TRIAL_MOST, device=self.rows.device) % len(self.rows)
        queries, lengths, took = self._bank[many], self._lengths[many], []
        propose(queries[:_TRIAL_QUERIES], self._bank, self._norms, lengths[:_TRIAL_QUERIES], self._lengths)
        for _ in range(4):  # the first compiles
            wait_for(self.rows.device)
            started = time.perf_counter()
            propose(queries, self._bank, self._norms, lengths, self._lengths)
            wait_for(self.rows.device)
            took.append(time.perf_counter() - started)
        return min(took)


def half_scale(most: float) -> float:
    """A power of two, times which values of up to `most` use float16's range and do not leave it."""
    exponent = math.floor(math.log2(_LARGEST / most)) if 0 < most < math.inf else 0
    return 2.0 ** max(-_EXPONENT_MOST, min(exponent, _EXPONENT_MOST))


def _leading_axes(centred: Tensor, count: int) -> Tensor:
    """Columns (D, count), square to each other, near those along which rows (M, D) vary most: by subspace iteration.

    Bounds hold with any, and are the closer the more of the rows' lengths they hold.
    """
    axes = torch.randn(centred.shape[1], count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(_STEPS):
        turned = centred.T @ (centred @ axes.to(centred))
        axes = torch.linalg.qr(turned.double().cpu())[0]
    return axes.to(centred)


def _sums(dim: int) -> float:
    """Error of a sum of so many products in float32, in units of |q||b|.

    Tensor cores add four products and more at a time to what they have, and cut off what does not fit instead of
    rounding it: each of the five at most two units of what is the largest.
    """
    return (2.5 * dim + 16) * _UNIT_ROUNDOFF


def by_fused_kernel(
    queries: Tensor, bank: Tensor, norms: Tensor, spreads: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals without the product in memory, where Triton runs."""
    from pipeline import fused  # noqa: PLC0415 - torch without CUDA comes without Triton

    return fused.least_two(queries, bank, norms, spreads, lengths)


def by_product(
    queries: Tensor, bank: Tensor, norms: Tensor, spreads: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals from the whole product, some 1 GiB of it at a time."""
    least, second = (torch.empty(len(queries), device=queries.device) for _ in range(2))
    rows = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    step = max(1, _BLOCK_BYTES // (4 * len(bank)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        values = _product(queries[part], bank)
        torch.add(norms, values, alpha=-2, out=values)
        values.addr_(spreads[part], lengths, alpha=-1)
        least[part], rows[part] = values.min(dim=1)
        second[part] = values.scatter_(1, rows[part].unsqueeze(1), torch.inf).amin(dim=1)
    return least, second, rows


def _product(queries: Tensor, bank: Tensor) -> Tensor:
    """(N, M), float16 in and float32 out."""
    if queries.device.type == "cuda":
        return torch.mm(queries, bank.T, out_dtype=torch.float32)
    return queries.float() @ bank.T.float()
