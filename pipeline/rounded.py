"""Exact nearest rows of a bank on a GPU: products of numbers rounded to float16 rule out, float32 settles.

With x = h + r, h what float16 keeps of x and r what it lacks, |q.b - hq.hb| <= |rq||b| + (|q| + |rq|)|rb| (Cauchy,
Schwarz). So ||b||^2 - 2 hq.hb less a share of |b| that depends on the query alone is a lower bound of
||b||^2 - 2 q.b. The row with the least bound is proposed; it is the nearest if its distance, taken by direct
differences, is below the second least bound. Queries of which that is not so are asked again with r rounded to
float16, too (the product is of hq + rq and hb + rb then, without rq.rb), and what is left is searched in float32.
Distances are always float32's, and what float32's own sums may err by is what is likely, as in `neighbours`. Rows are
taken from the bank's mean, and times a power of two that keeps float16 from overflowing: a query that does all the
same is one of those that are left.
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.devices import wait_for
from pipeline.neighbours import check_shapes, nearest, rounding, squared_norms

Propose: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Queries (N, D) and a bank (M, D), float16, its squared norms (M,), spreads (N,) and lengths (M,), float32, to each
query's least and second least of norm - 2 q.b - spread length, (N,) float32, summed in float32, and the row that has
the least, (N,) int64."""

_LARGEST = 256.0  # of scaled values; float16 ends at 65,504
_EXPONENT_MOST = 60  # of a scale, whose square is taken in float32
_UNIT_ROUNDOFF = 2.0**-24
_BLOCK_BYTES = 1 << 30  # of a product
_TRIAL_QUERIES = 784  # patches of a picture of 224 x 224
_TRIAL_MOST = 64 * _TRIAL_QUERIES  # of a batch


class RoundedBank:
    """A bank prepared for nearest-neighbour queries; never changed. Memory: 12 bytes a value of the bank.

    Attributes:
        rows: (M, D) float32, the bank itself.
    """

    def __init__(self, rows: Tensor, propose: Propose) -> None:
        self.rows = rows
        self._propose = propose
        self._mean = rows.mean(dim=0)
        most = float((rows - self._mean).abs().max())
        self._scale = half_scale(most)
        scaled = self._scaled_from_mean(rows)
        self._norms = squared_norms(scaled)
        self._lengths = self._norms.sqrt()
        half, rest, left = _halves(scaled)
        self._banks = (half, torch.cat([half, rest, half], dim=1))
        self._whole_norms = squared_norms(rows)
        lengths = self._lengths.clamp(min=1e-30)
        self._lost = tuple((torch.linalg.vector_norm(each, dim=1) / lengths).max() for each in (scaled - half, left))
        self._rest = (torch.linalg.vector_norm(rest.float(), dim=1) / lengths).max()
        self._longest = self._lengths.max()

    @classmethod
    def of(cls, rows: Tensor) -> "RoundedBank | None":
        """The bank prepared, with what proposes fastest there; None on a CPU, and where nothing proposes.

        Args:
            rows: (M, D) float32.
        """
        if rows.device.type != "cuda":
            return None
        bank, took = cls(rows, by_product), dict[Propose, float]()
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
        """The row nearest to each query. The host waits for the GPU once, and again for queries asked again.

        Args:
            queries: (N, D) float32.

        Returns:
            As `neighbours.nearest` with k = 1: squared distances (N, 1) float32 and indices (N, 1) int64.

        Raises:
            ShapeError: D differs.
        """
        check_shapes(queries, self.rows)
        scaled = self._scaled_from_mean(queries)
        distances, indices, sure = self._asked(queries, scaled, again=False)
        left = (~sure).nonzero().squeeze(1)
        if len(left):
            distances[left], indices[left], sure = self._asked(queries[left], scaled[left], again=True)
            left = left[~sure]
        if len(left):
            settled = nearest(queries[left], self.rows, bank_norms=self._whole_norms)
            distances[left], indices[left] = settled[0].squeeze(1), settled[1].squeeze(1)
        return distances.unsqueeze(1), indices.unsqueeze(1)

    def _asked(self, queries: Tensor, scaled: Tensor, *, again: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Distances to the rows proposed (N,), these rows (N,), and which of them are sure to be the nearest (N,)."""
        norms = squared_norms(scaled)
        length = norms.sqrt()
        if again:
            half, rest, left = _halves(scaled)
            asked = torch.cat([rest, half, half], dim=1)  # the large products last: sums are small until then
            lost = torch.linalg.vector_norm(left, dim=1)
            lost += self._rest * torch.linalg.vector_norm(rest.float(), dim=1)
        else:
            asked = scaled.half()
            lost = torch.linalg.vector_norm(scaled - asked, dim=1)
        spreads = 2 * (
            lost + (length + lost) * self._lost[again] + length * (_sums(scaled.shape[1]) + 4 * _UNIT_ROUNDOFF)
        )
        spreads += 4 * _UNIT_ROUNDOFF * self._longest
        _, second, indices = self._propose(asked, self._banks[again], self._norms, spreads, self._lengths)
        distances = self._apart(queries, indices)
        exact = distances * self._scale**2
        # Float32 takes the mean off, and sums squares, with an error of its own.
        slack = rounding(queries.shape[1]) * (norms + exact)
        return distances, indices, (exact + slack < second + norms) & spreads.isfinite()

    def _scaled_from_mean(self, rows: Tensor) -> Tensor:
        return torch.add(-self._scale * self._mean, rows, alpha=self._scale)

    def _apart(self, queries: Tensor, indices: Tensor) -> Tensor:
        return squared_norms(self.rows.index_select(0, indices).sub_(queries))

    def _seconds(self, propose: Propose) -> float:
        """How long proposals for a full batch take that way, once all of it is compiled.

        One picture's take that way or the other as long as their launches do.
        """
        many = torch.arange(_TRIAL_MOST, device=self.rows.device) % len(self.rows)
        for rows in self._banks:
            for few in (many[:_TRIAL_QUERIES], many):
                propose(rows[few], rows, self._norms, self._lengths[few], self._lengths)
        queries, lengths, took = self._banks[0][many], self._lengths[many], []
        for _ in range(3):
            wait_for(self.rows.device)
            started = time.perf_counter()
            propose(queries, self._banks[0], self._norms, lengths, self._lengths)
            wait_for(self.rows.device)
            took.append(time.perf_counter() - started)
        return min(took)


def half_scale(most: float) -> float:
    """A power of two, times which values of up to `most` use float16's range and do not leave it."""
    exponent = math.floor(math.log2(_LARGEST / most)) if 0 < most < math.inf else 0
    return 2.0 ** max(-_EXPONENT_MOST, min(exponent, _EXPONENT_MOST))


def _sums(dim: int) -> float:
    """Error of a sum of so many products in float32, in units of |q||b|.

    Tensor cores add four products and more at a time to what they have, and cut off what does not fit instead of
    rounding it: each of the five at most two units of what is the largest.
    """
    return (2.5 * dim + 16) * _UNIT_ROUNDOFF


def _halves(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What float16 keeps of rows (N, D), what it keeps of the rest, and what is left then, float32."""
    half = rows.half()
    rest = rows - half
    kept = rest.half()
    return half, kept, rest.sub_(kept)


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
