"""A conformal test martingale: evidence, gathered online, that numbers no longer come as they came before.

Vovk, Nouretdinov, Gammerman, "Testing exchangeability on-line", ICML 2003. Each number is ranked among all so far,
ties broken at random: p_n = (#{i <= n: s_i > s_n} + u #{i <= n: s_i = s_n}) / n, u uniform. While the numbers are
exchangeable the p_n are independent and uniform, whatever the numbers' distribution, and any bet on them with capital
M_0 = 1 and M_n = M_{n-1} f_n(p_n), where f_n integrates to 1 and depends on the past alone, is a martingale. By Ville's
inequality P(M_n >= 1/delta for any n) <= delta. P-values of a fixed calibration set are not independent, and void this.

The bets f are e p^(e-1) and e (1-p)^(e-1) (the power martingales of that paper, on either tail, for several e), among
which capital jumps at a small rate (the simple jumper; Vovk et al., "Retrain or not retrain: conformal test martingales
for change-point detection", COPA 2021). Departure, and why: a jumper that bets from the first number on loses a share
of its capital at every step, so that after a long good run nothing brings it back in time. Here capital wakes up over
time: of the 1 at the start, 1/(k (k+1)) begins to bet at number k. This is a mixture of martingales, hence one; after n
numbers at least 1/(n+1) is left untouched, so that the delay of an alarm grows with log n alone. Both papers are cited
from knowledge, not re-read; that the bets are fair and the bound holds is tested, not taken from them.

Ranks among all so far count changed numbers in: a change in the first frames of a baseline becomes part of what is
usual, and a small one may never add up to an alarm. That is the price of a bound that needs no calibration set.

Memory is bounded without giving up exactness: numbers are rounded to `_STEPS` values an octave on a grid that is fixed
beforehand, and equal ones are ties. Rounding each number by itself keeps exchangeability, so the p-values stay uniform.
"""

import math
from bisect import bisect_left
from datetime import datetime
from random import Random
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

EXPONENTS = (0.1, 0.25, 0.5, 0.8)
_STEPS = 2048  # values an octave: 0.05 % apart
_OCTAVES = 32  # above and below 1; beyond is a tie with the last
BINS_MAX = 2 * (2 * _OCTAVES + 1) * _STEPS
_JUMP = 0.01
_NOTHING = -1e6  # the logarithm of no capital, finite for JSON
_SMALLEST_P = 1e-18  # raising a p-value to it only lowers a bet's gain
_BETS = [(e, side) for e in EXPONENTS for side in (0, 1)]  # side 0 gains from high numbers, 1 from low ones


class Alarm(Struct, frozen=True, kw_only=True):
    """A martingale that has reached its limit.

    Attributes:
        log_martingale: natural logarithm of M when it did.
        direction: how the numbers changed.
        since: when M began to rise: the moment of its lowest value.
        at: when the alarm was raised; `frame_id` names the frame.
        seen: numbers up to then, since the baseline began.
    """

    log_martingale: float
    direction: Literal["higher", "lower"]
    since: datetime
    at: datetime
    frame_id: str
    seen: int


class Martingale(Struct, kw_only=True):
    """One number's monitor. It is its own state: msgspec writes it as JSON and reads it back.

    Attributes:
        keys: the grid's places seen so far, ascending; at most `BINS_MAX`. `counts` says how often each was.
        log_betting: natural logarithm of the capital that bets; 1 / (seen + 1) waits.
        shares: of it in each bet: for each exponent, on high numbers and on low ones.
        lowest: of the capital in all, its least so far; `since` is when that was.
        alarm: once raised it stands, and no more numbers are taken.
    """

    keys: list[int] = []
    counts: list[Annotated[int, Meta(ge=1)]] = []
    seen: Annotated[int, Meta(ge=0)] = 0
    log_betting: float = _NOTHING
    shares: Annotated[list[float], Meta(min_length=len(_BETS), max_length=len(_BETS))] = msgspec.field(
        default_factory=lambda: [1 / len(_BETS)] * len(_BETS)
    )
    lowest: float = 0.0
    since: datetime | None = None
    alarm: Alarm | None = None

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.counts) or self.seen != sum(self.counts) or self.keys != sorted(set(self.keys)):
            raise ValueError("a monitor's ranks do not fit together")

    @property
    def log_value(self) -> float:
        """Natural logarithm of M."""
        return _log_sum(self.log_betting, -math.log(self.seen + 1))

    def take(self, number: float, *, limit: float, at: datetime, frame_id: str, rng: Random) -> Alarm | None:
        """Rank a number, bet, and say so if this raised the alarm.

        Args:
            number: finite.
            limit: natural logarithm of the M at which to raise it, log(1 / delta).
            at: when the frame was captured.
            frame_id: of the frame that the number is of.
            rng: breaks ties. It need not go on where it left off: independence is all that counts.
        """
        if self.alarm is not None:
            return None
        self.bet(self.rank(number, 1.0 - rng.random()))
        value = self.log_value
        if self.since is None or value <= self.lowest:
            self.lowest, self.since = value, at
        if value < limit:
            return None
        self.alarm = Alarm(
            log_martingale=value,
            direction="higher" if sum(self.shares[0::2]) > sum(self.shares[1::2]) else "lower",
            since=self.since,
            at=at,
            frame_id=frame_id,
            seen=self.seen,
        )
        return self.alarm

    def rank(self, number: float, u: float) -> float:
        """Take a number among those seen, and its p-value in (0, 1]: small for a high one; u in (0, 1] breaks ties."""
        key = place(number)
        i = bisect_left(self.keys, key)
        if i == len(self.keys) or self.keys[i] != key:
            self.keys.insert(i, key)
            self.counts.insert(i, 0)
        self.counts[i] += 1
        self.seen += 1
        return (sum(self.counts[i + 1 :]) + u * self.counts[i]) / self.seen

    def bet(self, p: float) -> None:
        """Wake the capital that is due, let it jump, and multiply each bet's by what it gains from a p-value."""
        waking = -math.log(self.seen) - math.log(self.seen + 1)
        log_betting = _log_sum(self.log_betting, waking)
        old = math.exp(self.log_betting - log_betting) * (1 - _JUMP)
        even = (1 - old) / len(_BETS)
        tails = math.log(max(p, _SMALLEST_P)), math.log(max(1 - p, _SMALLEST_P))
        gains = [
            (share * old + even) * e * math.exp((e - 1) * tails[side])
            for share, (e, side) in zip(self.shares, _BETS, strict=True)
        ]
        gained = math.fsum(gains)  # never 0: no bet loses more than all but its exponent's share
        self.log_betting = log_betting + math.log(gained)
        self.shares = [gain / gained for gain in gains]


def _log_sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b)), in logarithms throughout."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def place(number: float) -> int:
    """A number's place on the fixed grid: ascending with it, `_STEPS` to an octave.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(number):
        raise ValueError(f"a monitored number must be finite, not {number}")
    mantissa, exponent = math.frexp(abs(number))  # mantissa in [0.5, 1)
    if number == 0 or exponent < -_OCTAVES:
        return 0
    within = min(int((mantissa - 0.5) * 2 * _STEPS), _STEPS - 1)
    step = 1 + (exponent + _OCTAVES) * _STEPS + within
    return int(math.copysign(min(step, BINS_MAX // 2 - 1), number))
