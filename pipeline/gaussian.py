"""Multivariate Gaussians, one at each position of a feature grid: exact running sums, Cholesky factors, distances.

Sums are float64 and about a shift near the mean, so that nothing cancels; two of them about the same shift add up,
which is what an incremental refit needs. Factors are used by solving, never by an explicit inverse.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from pipeline.errors import ArtifactError, FitError
from pipeline.fitted import check_shape

_BLOCK_BYTES = 256 << 20
_SHARED_FROM = 1 << 20  # values of factors; fewer take less time than handing them to threads is worth
_OF_ONE_THREAD = 1 << 15  # values of a share: of more, torch would open threads of its own within each of the pool's


class RunningSums:
    """Count, sum and sum of products of D values at each of P positions.

    Memory: 8 P D^2 bytes; 7.6 GB at 56x56 and D = 550.
    """

    def __init__(self, shift: Tensor) -> None:
        """Sums about `shift`, (P, D)."""
        self.count = 0
        self.shift = shift.double()
        positions, dim = shift.shape
        self.total = torch.zeros(positions, dim, dtype=torch.float64, device=shift.device)
        self.products = torch.zeros(positions, dim, dim, dtype=torch.float64, device=shift.device)

    @classmethod
    def of(cls, means: Tensor, factors: Tensor, count: int, ridge: float, shrinkage: float = 0.0) -> "RunningSums":
        """The sums that `gaussians(ridge, shrinkage)` was computed from, to the rounding of its float32 factors.

        Args:
            means: (P, D).
            factors: (P, D, D).
            count: of the values, at least 2.
            ridge: as it was.
            shrinkage: as it was.
        """
        sums = cls(means)
        sums.count = count
        wide = factors.double()
        torch.bmm(wide, wide.transpose(1, 2), out=sums.products)
        if shrinkage:  # what was shrunk has the same mean over the positions
            sums.products.sub_(shrinkage * sums.products.mean(dim=0)).div_(1 - shrinkage)
        sums.products.diagonal(dim1=1, dim2=2).sub_(ridge)
        sums.products.mul_(count - 1)
        return sums

    def add(self, values: Tensor) -> None:
        """Take in (B, P, D) values."""
        centred = values.double().transpose(0, 1) - self.shift.unsqueeze(1)  # (P, B, D)
        self.total += centred.sum(dim=1)
        self.products.baddbmm_(centred.transpose(1, 2), centred)
        self.count += values.shape[0]

    def merge(self, other: "RunningSums") -> None:
        """Take in another's; both must be about the same shift.

        Raises:
            FitError: they are not.
        """
        if not torch.equal(self.shift, other.shift):
            raise FitError("sums about different shifts cannot be merged")
        self.total += other.total
        self.products += other.products
        self.count += other.count

    def gaussians(self, ridge: float, shrinkage: float = 0.0) -> tuple[Tensor, Tensor]:
        """Means and Cholesky factors of the unbiased covariances plus `ridge` on their diagonals.

        Args:
            ridge: above 0, on their diagonals.
            shrinkage: s, 0 to below 1, of (1 - s) C + s P, with P the mean of all positions' covariances C. After
                Friedman, "Regularized Discriminant Analysis", 1989 (not re-read), where positions would be classes.

        Returns:
            (P, D) and (P, D, D) lower triangular, float32. Computed in float64, some positions at a time.

        Raises:
            FitError: fewer than 2 values, or a covariance that is not positive definite.
        """
        if self.count < 2:
            raise FitError(f"a covariance needs at least 2 values, not {self.count}")
        offset = self.total / self.count
        positions, dim = offset.shape
        factors = torch.empty(positions, dim, dim, dtype=torch.float32, device=offset.device)
        step = max(1, _BLOCK_BYTES // (8 * dim * dim))
        common = torch.eye(dim, dtype=torch.float64, device=offset.device) * ridge
        if shrinkage:
            outers = self.count * (offset.T @ offset)  # of all positions, in one product
            pooled = (self.products.sum(dim=0) - outers) / (self.count - 1) / positions
            common += shrinkage * pooled
        for at in range(0, positions, step):
            part = slice(at, at + step)
            outer = offset[part].unsqueeze(2) * offset[part].unsqueeze(1)
            covariance = (self.products[part] - self.count * outer) * ((1 - shrinkage) / (self.count - 1)) + common
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if bool(failed.any()):
                raise FitError(f"a covariance is not positive definite: raise ridge, which is {ridge:g}")
            factors[part] = factor.float()
        return (self.shift + offset).float(), factors


def mahalanobis(values: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """sqrt((x - m)^T C^-1 (x - m)) at each position, by one triangular solve.

    Args:
        values: (B, P, D).
        means: (P, D).
        factors: (P, D, D), lower Cholesky factors of C.

    Returns:
        (B, P) float32.
    """
    centred = (values - means).permute(1, 2, 0)  # (P, D, B)
    threads = torch.get_num_threads() if factors.device.type == "cpu" else 1
    if len(values) > 1 or threads == 1 or factors.numel() < _SHARED_FROM:
        return _norms(factors, centred).T.contiguous()
    return _shared(factors, centred, threads).T.contiguous()


def _shared(factors: Tensor, centred: Tensor, threads: int) -> Tensor:
    """`_norms` of one picture: torch would solve a position after the other, in one thread."""
    shares = max(threads, -(-centred.numel() // _OF_ONE_THREAD))
    split = factors.tensor_split(shares), centred.tensor_split(shares)
    return torch.cat(list(_pool(threads).map(_norms, *split)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gaussian")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


def _norms(factors: Tensor, centred: Tensor) -> Tensor:
    """|L^-1 x| at each position, (P, B)."""
    norms: Tensor = torch.linalg.vector_norm(torch.linalg.solve_triangular(factors, centred, upper=False), dim=1)
    return norms


def pack(factors: Tensor) -> Tensor:
    """The lower triangles of (P, D, D) as (P, D (D + 1) / 2)."""
    rows, columns = torch.tril_indices(factors.shape[1], factors.shape[1])
    return factors[:, rows, columns].contiguous()


def unpack(packed: Tensor, dim: int) -> Tensor:
    """What `pack` packed."""
    factors = packed.new_zeros(packed.shape[0], dim, dim)
    rows, columns = torch.tril_indices(dim, dim)
    factors[:, rows, columns] = packed
    return factors


def read(means: Tensor, packed: Tensor, dim: int) -> Tensor:
    """The factors of an artifact, checked beside its means (P, D).

    Raises:
        ArtifactError: shapes or types do not fit, or a diagonal is not positive.
    """
    positions = means.shape[0] if means.dim() else 0
    check_shape("means", means, (positions, dim), torch.float32)
    check_shape("factors", packed, (positions, dim * (dim + 1) // 2), torch.float32)
    factors = unpack(packed, dim)
    if not bool((factors.diagonal(dim1=1, dim2=2) > 0).all()):
        raise ArtifactError("factors are none of Cholesky's: a diagonal is not positive")
    return factors
