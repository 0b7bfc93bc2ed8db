"""Exact nearest neighbours: a matrix product makes the shortlist, direct differences settle it.

||q||^2 + ||b||^2 - 2 q.b is fast but loses the digits of near neighbours by cancellation. So it only proposes
a few candidates a query, whose distances are then computed as sum (q - b)^2. Where rounding could have kept a
true neighbour off the shortlist, that query is proposed anew in float64.
"""

import math

import torch
from torch import Tensor

from pipeline.errors import ShapeError

_SPARE = 3  # candidates beyond k: near ties are settled directly, without the float64 pass
_SPARE_OF_TIES = 7  # where most queries have some
_BLOCK_BYTES = (64 << 20, 1 << 30)  # on a CPU, on a GPU
_UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def nearest(
    queries: Tensor,
    bank: Tensor,
    k: int = 1,
    *,
    bank_norms: Tensor | None = None,
    block: int | None = None,
    near_ties: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k rows of the bank nearest to each query, nearest first.

    Memory beyond inputs and outputs: `block` times (M + 2 (k + 3) D) numbers, of near ties 7 for 3; by default about
    64 MiB, 1 GiB on a GPU.

    Args:
        queries: (N, D) float32.
        bank: (M, D) float32, on the same device.
        k: how many, at most M.
        bank_norms: (M,) float32, squared norms of the bank's rows, where the caller keeps them.
        block: queries handled at once.
        near_ties: of most of these queries several rows are about as near: a shortlist is made at once.

    Returns:
        Squared Euclidean distances (N, k) float32, >= 0, relative error about 1e-6, and indices (N, k) int64.

    Raises:
        ShapeError: D differs, or the bank has fewer than k rows.
    """
    check_shapes(queries, bank)
    if not 1 <= k <= bank.shape[0]:
        raise ShapeError(f"{k} neighbours asked of a bank of {bank.shape[0]} rows")
    norms = squared_norms(bank) if bank_norms is None else bank_norms
    spare = _SPARE_OF_TIES if near_ties else _SPARE
    most_bytes = _BLOCK_BYTES[queries.device.type == "cuda"]
    rows = block or max(1, most_bytes // (4 * (bank.shape[0] + 2 * (k + spare) * bank.shape[1])))
    distances = torch.empty(queries.shape[0], k, dtype=torch.float32, device=queries.device)
    indices = torch.empty(queries.shape[0], k, dtype=torch.int64, device=queries.device)
    safe = torch.empty(queries.shape[0], dtype=torch.bool, device=queries.device)
    largest = norms.max()
    alone = k == 1 and not near_ties
    for start in range(0, queries.shape[0], rows):
        part = slice(start, start + rows)
        few = queries[part]
        found = _search_one(few, bank, norms, largest) if alone else _search(few, bank, norms, largest, k, spare)
        (distances[part], indices[part]), safe[part] = found
    unsafe = (~safe).nonzero().squeeze(1)  # a GPU is waited for here, and again only where there are any
    if alone and len(unsafe):  # near ties: a shortlist settles most of them
        for at in torch.split(unsafe, rows):
            (distances[at], indices[at]), safe[at] = _search(queries[at], bank, norms, largest, k, spare)
        unsafe = unsafe[~safe[unsafe]]
    for at in torch.split(unsafe, max(1, rows // 4)) if len(unsafe) else ():
        distances[at], indices[at] = _search_in_double(queries[at], bank, k)
    return distances, indices


def check_shapes(queries: Tensor, bank: Tensor) -> None:
    """Refuse what is not (N, D) and (M, D).

    Raises:
        ShapeError: it is not.
    """
    if queries.dim() != 2 or bank.dim() != 2 or queries.shape[1] != bank.shape[1]:
        raise ShapeError(f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} must be (N, D) and (M, D)")


def squared_norms(rows: Tensor) -> Tensor:
    """Squared Euclidean norm of each row: (M, D) -> (M,)."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.square_()


def exact_floats() -> bool:
    """Whether products of float32 are float32's, not TF32's or bfloat16's."""
    return torch.get_float32_matmul_precision() == "highest"


def _search_one(queries: Tensor, bank: Tensor, norms: Tensor, largest: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """As `_search`, for one neighbour: two minima cost less than a shortlist."""
    partial = torch.addmm(norms.unsqueeze(0), queries, bank.T, alpha=-2)
    best, found = partial.min(dim=1, keepdim=True)
    distances = squared_norms(bank.index_select(0, found.squeeze(1)).sub_(queries)).unsqueeze(1)
    second = partial.scatter_(1, found, torch.inf).amin(dim=1)
    slack = rounding(bank.shape[1]) * (squared_norms(queries) + largest)
    return (distances, found), second - best.squeeze(1) > 2 * slack


def _search(
    queries: Tensor, bank: Tensor, norms: Tensor, largest: Tensor, k: int, spare: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Nearest of one block, and per query whether rounding cannot have hidden a nearer row."""
    # ||q||^2 is the same for all rows of the bank, so that it cannot change their order.
    partial = torch.addmm(norms.unsqueeze(0), queries, bank.T, alpha=-2)
    wide = min(k + spare, bank.shape[0])
    proposed, candidates = partial.topk(wide, dim=1, largest=False)
    settled = _settle(queries, bank, candidates, k)
    if wide == bank.shape[0]:
        return settled, torch.ones(queries.shape[0], dtype=torch.bool, device=queries.device)
    slack = rounding(bank.shape[1]) * (squared_norms(queries) + largest)
    return settled, proposed[:, -1] - proposed[:, k - 1] > 2 * slack


def rounding(dimension: int) -> float:
    """Likely rounding error of a distance from the matrix product, in units of ||q||^2 + ||b||^2."""
    if not exact_floats():
        return 2.0**-8
    return (2 * math.sqrt(dimension) + 4) * _UNIT_ROUNDOFF[torch.float32]


def _settle(queries: Tensor, bank: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of each query's candidates, by direct differences."""
    gathered = bank[candidates.reshape(-1)].view(*candidates.shape, -1)
    exact = torch.linalg.vector_norm(gathered.sub_(queries.unsqueeze(1)), dim=2).square_()
    best, order = exact.topk(k, dim=1, largest=False)
    return best, candidates.gather(1, order)


def _search_in_double(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `_search`, with sums in float64; the bank is converted piece by piece."""
    wanted = queries.double()
    best = torch.empty(queries.shape[0], 0, dtype=torch.float64, device=queries.device)
    rows = torch.empty(queries.shape[0], 0, dtype=torch.int64, device=queries.device)
    step = max(k, _BLOCK_BYTES[0] // (16 * (bank.shape[1] + queries.shape[0])))
    for start in range(0, bank.shape[0], step):
        piece = bank[start : start + step].double()
        partial = torch.addmm(piece.square().sum(dim=1).unsqueeze(0), wanted, piece.T, alpha=-2)
        values, here = partial.topk(min(k + _SPARE, piece.shape[0]), dim=1, largest=False)
        best, rows = torch.cat([best, values], dim=1), torch.cat([rows, here + start], dim=1)
        best, order = best.topk(min(k + _SPARE, best.shape[1]), dim=1, largest=False)
        rows = rows.gather(1, order)
    return _settle(queries, bank, rows, k)
