"""Products of 8-bit integers on a CPU: those by which a bank's rows are ruled out, so each of them has to be exact.

torch has two such products, and makes neither public. That of plain matrices is the faster one with AVX2 and AVX-512.
With AMX the one that it has for quantised networks takes half the time (measured): the bank is in tiles beforehand, and
norms are added on the way.

A processor without VNNI adds two products in 16 bits, with 128 added to the queries' integers: (127 + 128) x 63 x 2
fits, so that the bank's integers have 7 bits.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

LARGEST, QUERY_LARGEST = 63, 127  # of the bank's integers, and the queries'
MULTIPLE = 8  # of rows that there must be
_SHIFT = 128  # makes a query's integers positive
_FLOAT_EXACT = 2**24  # up to here a float32 holds every integer
_PACKED_MOST = _FLOAT_EXACT // (LARGEST * (LARGEST + _SHIFT + QUERY_LARGEST))  # numbers a row


class IntegerRows(Protocol):
    """A bank's rows b and their norms, ready to be multiplied."""

    def less_products(self, queries: Tensor) -> Tensor:
        """|b|^2 - q.b of every query and row.

        Args:
            queries: (N, k) float32, whole numbers of at most `QUERY_LARGEST`.

        Returns:
            (N, M) int32 or float32, whole numbers.
        """
        ...


class PlainRows:
    """As they are."""

    def __init__(self, rows: Tensor, norms: Tensor) -> None:
        self._rows, self._norms = rows, norms

    def less_products(self, queries: Tensor) -> Tensor:
        """As `IntegerRows` says; int32."""
        products = torch._int_mm(queries.to(torch.int8), self._rows.T)  # noqa: SLF001 - as the module says
        return torch.sub(self._norms, products, out=products)


class PackedRows:
    """In the tiles that the processor multiplies, negative."""

    def __init__(self, rows: Tensor, norms: Tensor) -> None:
        self._tiles = torch.ops.onednn.qlinear_prepack(-rows, None)
        # What is added to the queries is taken off again: a product of signed integers would be torch's slow one.
        self._added = norms.float() + _SHIFT * rows.sum(dim=1, dtype=torch.int32)
        self._one, self._zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)

    def less_products(self, queries: Tensor) -> Tensor:
        """As `IntegerRows` says; float32."""
        shifted = (queries + _SHIFT).to(torch.uint8)
        scales = (1.0, 0, self._tiles, self._one, self._zero, self._added, 1.0, 0)
        products: Tensor = torch.ops.onednn.qlinear_pointwise(shifted, *scales, torch.float32, "none", [], "")
        return products


def ready(rows: Tensor, norms: Tensor) -> IntegerRows:
    """The rows for the product that is the faster here.

    Args:
        rows: (M, k) int8, none above `LARGEST`; M is a multiple of `MULTIPLE`.
        norms: (M,) int32, their squared lengths, or 2^30 of a row that no query is to find.
    """
    if has_amx() and rows.shape[1] <= _PACKED_MOST and _right(PackedRows):
        return PackedRows(rows, norms)
    return PlainRows(rows, norms)


def multiplies() -> bool:
    """Whether the largest integers there are give right sums here; no processor is known on which they do not."""
    return _right(PlainRows)


def has_amx() -> bool:
    """Whether the processor multiplies matrices of 8-bit integers."""
    told: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # an older torch has none
    return bool(told().get("amx_int8"))


@cache
def _right(kind: Callable[[Tensor, Tensor], IntegerRows]) -> bool:
    queries = torch.full((64, 512), QUERY_LARGEST, dtype=torch.float32)
    rows = torch.full((8 * MULTIPLE, 512), LARGEST, dtype=torch.int8)
    queries[::2], rows[::3] = -QUERY_LARGEST, -LARGEST
    norms = torch.full((len(rows),), 512 * LARGEST**2, dtype=torch.int32)
    try:
        found = kind(rows, norms).less_products(queries)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found.double(), norms - queries.double() @ rows.double().T)
