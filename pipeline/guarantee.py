"""What n good parts can prove about false rejects: exact, by the binomial distribution, for scores of any distribution.

A threshold with at most k of n calibration scores above it, ties included, is the (k+1)-th largest of them. Its true
rate of false rejects exceeds r with probability P(Binomial(n, r) <= k) at most, and exactly so if no two scores are
equal (a one-sided tolerance limit; Wilks 1941). Read for k it is `allowed`, for n `needed`, for r `provable`.
"""

import math
from dataclasses import dataclass

from scipy import stats

from pipeline.errors import ConfigError

CONFIDENCE = 0.95
_RATE_LEAST = 1e-6
_RATE_BELOW = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What can be promised about false rejects.

    Attributes:
        holds: the rate is proved, given this calibration set, with `confidence`.
        rate: the share of good parts that may be rejected.
        goods: calibration goods it rests on.
        allowed: how many of them may lie above the threshold (k); 0 where nothing is proved.
        goods_needed: fewest goods for which `rate` can be proved.
    """

    holds: bool
    rate: float
    confidence: float
    goods: int
    allowed: int
    goods_needed: int

    def __str__(self) -> str:
        wanted = f"{self.rate:.3g} of good parts rejected, with {self.confidence:.0%} confidence"
        if self.holds:
            above = f"at most {self.allowed}" if self.allowed else "none"
            return f"at most {wanted}, as {above} of {self.goods} calibration goods lie above the threshold"
        return (
            f"no guarantee: {self.goods} calibration goods, {self.goods_needed} are needed for {wanted}; it may be more"
        )


def is_rate(rate: float) -> bool:
    """Whether a share of good parts can be asked for: 1e-6 or more, and less than half."""
    return _RATE_LEAST <= rate < _RATE_BELOW


def check_rate(rate: float) -> None:
    """Refuse what is no rate, before work begins.

    Raises:
        ConfigError: it is outside of [1e-6, 0.5).
    """
    if not is_rate(rate):
        raise ConfigError(f"the share of good parts that may be rejected is {_RATE_LEAST} to {_RATE_BELOW}, not {rate}")


def promise(n: int, rate: float, confidence: float = CONFIDENCE) -> Guarantee:
    """What n calibration goods can prove about a rate."""
    k = allowed(n, rate, confidence)
    return Guarantee(
        holds=k is not None,
        rate=rate,
        confidence=confidence,
        goods=n,
        allowed=k or 0,
        goods_needed=needed(rate, confidence),
    )


def allowed(n: int, rate: float, confidence: float = CONFIDENCE) -> int | None:
    """Largest k with P(Binomial(n, rate) <= k) <= 1 - confidence; None where even k = 0 is too many."""
    k = int(stats.binom.ppf(1 - confidence, n, rate))
    while k >= 0 and stats.binom.cdf(k, n, rate) > 1 - confidence:
        k -= 1
    return k if k >= 0 else None


def needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """Fewest goods for which `rate` can be proved at all: (1 - rate)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-rate))


def provable(n: int, k: int = 0, confidence: float = CONFIDENCE) -> float:
    """Smallest rate that n goods can prove with k of them above: r with P(Binomial(n, r) <= k) = 1 - confidence.

    The upper end of Clopper and Pearson's interval (1934), a quantile of Beta(k + 1, n - k).

    Args:
        n: calibration goods.
        k: in [0, n).
        confidence: probability, over calibration sets, with which the rate holds.
    """
    return float(stats.beta.ppf(confidence, k + 1, n - k))
