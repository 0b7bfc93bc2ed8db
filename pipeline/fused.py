"""Bounds of distances to a whole bank and the least two of them in one kernel, none of them in memory. Needs Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERIES, _ROWS = 128, 256  # of a tile: queries, rows of the bank
_WARPS, _STAGES = 8, 4
_STEPS = (64, 32)  # dimensions at once where a few queries leave processors idle, and where they do not
_TILES_PER_PROCESSOR = 1


def least_two(
    queries: Tensor, bank: Tensor, norms: Tensor, spreads: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For each query q the least and the second least of norm - 2 q.b - spread length over the bank's rows b.

    Args:
        queries: (N, D) float16.
        bank: (M, D) float16, on the same device.
        norms: (M,) float32.
        spreads: (N,) float32.
        lengths: (M,) float32.

    Returns:
        Least and second least (N,) float32, products summed in float32, and the row of the least (N,) int64; inf is
        second to a bank of one row. What is no number counts as -inf.
    """
    n, m = queries.shape[0], bank.shape[0]
    blocks, tiles = triton.cdiv(n, _QUERIES), triton.cdiv(m, _ROWS)
    # Few queries leave processors idle unless several share the bank among them.
    processors = _processors(queries.device)
    parts = max(1, min(tiles, _TILES_PER_PROCESSOR * processors // max(1, blocks)))
    each = triton.cdiv(tiles, parts) * _ROWS
    parts = triton.cdiv(m, each)
    least = torch.empty(parts, n, dtype=torch.float32, device=queries.device)
    second, row = torch.empty_like(least), torch.zeros_like(least, dtype=torch.int32)
    if n:
        with torch.cuda.device(queries.get_device()):  # of a CPU that is -1, which changes nothing
            _least_two[blocks, parts](
                queries.contiguous(), bank.contiguous(), norms.contiguous(), spreads.contiguous(), lengths.contiguous(),
                least, second, row, n, m, each,
                dim=queries.shape[1], queries_in=_QUERIES, rows_in=_ROWS, step=_STEPS[blocks >= processors],
                num_warps=_WARPS, num_stages=_STAGES,
            )  # fmt: skip
    best, part = least.min(dim=0, keepdim=True)
    others = least.scatter(0, part, torch.inf)
    return best[0], torch.minimum(second.amin(dim=0), others.amin(dim=0)), row.gather(0, part)[0].long()


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]
def _least_two(  # type: ignore[no-untyped-def]
    queries, bank, norms, spreads, lengths, least, second, row, n, m, each,
    dim: tl.constexpr, queries_in: tl.constexpr, rows_in: tl.constexpr, step: tl.constexpr,
):  # fmt: skip
    """A tile of queries against the bank's rows from `each` times this part on."""
    asked = tl.program_id(0) * queries_in + tl.arange(0, queries_in)
    here = tl.arange(0, rows_in)
    first = tl.program_id(1) * each
    spread = tl.load(spreads + asked, mask=asked < n, other=0.0)
    low = tl.full((queries_in,), float("inf"), tl.float32)
    next_low = tl.full((queries_in,), float("inf"), tl.float32)
    low_at = tl.zeros((queries_in,), tl.int32)
    for start in range(first, min(first + each, m), rows_in):
        rows = start + here
        products = tl.zeros((queries_in, rows_in), tl.float32)
        for d in range(0, dim, step):
            dims = d + tl.arange(0, step)
            q = tl.load(
                queries + asked.to(tl.int64)[:, None] * dim + dims[None, :],
                mask=(asked < n)[:, None] & (dims < dim)[None, :],
                other=0.0,
            )
            b = tl.load(
                bank + rows.to(tl.int64)[None, :] * dim + dims[:, None],
                mask=(rows < m)[None, :] & (dims < dim)[:, None],
                other=0.0,
            )
            products = tl.dot(q, b, products)
        norm = tl.load(norms + rows, mask=rows < m, other=float("inf"))
        length = tl.load(lengths + rows, mask=rows < m, other=0.0)
        values = norm[None, :] - 2 * products - spread[:, None] * length[None, :]
        values = tl.where(values == values, values, float("-inf"))  # noqa: PLR0124 - minima leave out what is no number
        tile, place = tl.min(values, axis=1, return_indices=True)
        rest = tl.min(tl.where(here[None, :] == place[:, None], float("inf"), values), axis=1)
        next_low = tl.minimum(tl.minimum(next_low, rest), tl.maximum(low, tile))
        low_at = tl.where(tile < low, start + place, low_at)
        low = tl.minimum(low, tile)
    at = tl.program_id(1).to(tl.int64) * n + asked
    tl.store(least + at, low, mask=asked < n)
    tl.store(second + at, next_low, mask=asked < n)
    tl.store(row + at, low_at, mask=asked < n)
