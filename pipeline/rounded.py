"""Exact nearest rows of a bank on a GPU: a product of numbers rounded to float16 proposes, float32 settles.

What rounding took from each row is known, r(x) = x - half(x), and so is what it can do to a product (Cauchy, Schwarz):

  |q.b - half(q).half(b)| <= |r(q)| |half(b)| + (|half(q)| + |r(q)|) |r(b)|

Sums in float32 add at most D + 4 units of their last place. Where the second least ||b||^2 - 2 q.b lies farther above
the least than both may be wrong, the row that was proposed is the nearest, and its distance is taken by direct
differences. Any other query goes the whole way. Rows are taken from the bank's mean, and times a power of two that
keeps float16 from overflowing: a query that does all the same is one of the others.
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.devices import wait_for
from pipeline.neighbours import check_shapes, nearest, squared_norms

Propose: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Queries (N, D) and a bank (M, D), float16, and its squared norms (M,) float32, to each query's least and second least
of norm - 2 q.b, (N,) float32, summed in float32, and the row that has the least, (N,) int64."""

_LARGEST = 256.0  # of the bank's scaled values; float16 ends at 65,504
_UNIT_ROUNDOFF = 2.0**-24
_BLOCK_BYTES = 1 << 30  # of a product
_TRIAL_QUERIES = 784  # patches of a picture of 224 x 224


class RoundedBank:
    """A bank prepared for nearest-neighbour queries; never changed.

    Attributes:
        rows: (M, D) float32, the bank itself.
    """

    def __init__(self, rows: Tensor, propose: Propose) -> None:
        self.rows = rows
        self._propose = propose
        self._whole_norms = squared_norms(rows)
        self._mean = rows.mean(dim=0)
        centred = rows - self._mean
        most = float(centred.abs().max())
        self._scale = 2.0 ** math.floor(math.log2(_LARGEST / most)) if 0 < most < math.inf else 1.0
        self._norms = squared_norms(centred * self._scale)
        self._half, lengths, lost = self._rounded(rows)
        self._length, self._lost, self._norm = lengths.max(), lost.max(), self._norms.max()

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
        """The row nearest to each query. The host waits for the GPU once, twice where a query goes the whole way.

        Args:
            queries: (N, D) float32.

        Returns:
            As `neighbours.nearest` with k = 1: squared distances (N, 1) float32 and indices (N, 1) int64.

        Raises:
            ShapeError: D differs.
        """
        check_shapes(queries, self.rows)
        half, length, lost = self._rounded(queries)
        least, second, indices = self._propose(half, self._half, self._norms)
        distances = squared_norms(self.rows.index_select(0, indices).sub_(queries))
        wrong = 2 * (lost * self._length + (length + lost) * self._lost)
        wrong += (queries.shape[1] + 4) * _UNIT_ROUNDOFF * (2 * length * self._length + self._norm)
        unsure = (~(second - least > 2 * wrong)).nonzero().squeeze(1)
        if len(unsure):
            settled = nearest(queries[unsure], self.rows, bank_norms=self._whole_norms)
            distances[unsure], indices[unsure] = settled[0].squeeze(1), settled[1].squeeze(1)
        return distances.unsqueeze(1), indices.unsqueeze(1)

    def _rounded(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows as float16, (N, D); lengths of these, and of what they lack, (N,)."""
        scaled = (rows - self._mean).mul_(self._scale)
        half = scaled.half()
        kept = half.float()
        return half, torch.linalg.vector_norm(kept, dim=1), torch.linalg.vector_norm(scaled.sub_(kept), dim=1)

    def _seconds(self, propose: Propose) -> float:
        """How long proposals for a picture's patches take that way, once it is compiled."""
        took = []
        for _ in range(4):
            wait_for(self.rows.device)
            started = time.perf_counter()
            propose(self._half[:_TRIAL_QUERIES], self._half, self._norms)
            wait_for(self.rows.device)
            took.append(time.perf_counter() - started)
        return min(took)


def by_fused_kernel(queries: Tensor, bank: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals without the product in memory, where Triton runs."""
    from pipeline import fused  # noqa: PLC0415 - torch without CUDA comes without Triton

    return fused.least_two(queries, bank, norms)


def by_product(queries: Tensor, bank: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals from the whole product, some 1 GiB of it at a time."""
    least, second = (torch.empty(len(queries), device=queries.device) for _ in range(2))
    rows = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    step = max(1, _BLOCK_BYTES // (4 * len(bank)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        values = _product(queries[part], bank)
        torch.add(norms, values, alpha=-2, out=values)
        least[part], rows[part] = values.min(dim=1)
        second[part] = values.scatter_(1, rows[part].unsqueeze(1), torch.inf).amin(dim=1)
    return least, second, rows


def _product(queries: Tensor, bank: Tensor) -> Tensor:
    """(N, M), float16 in and float32 out."""
    if queries.device.type == "cuda":
        return torch.mm(queries, bank.T, out_dtype=torch.float32)
    return queries.float() @ bank.T.float()
