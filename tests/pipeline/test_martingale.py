"""A martingale on ranks: exact p-values, a bound on false alarms that holds, changes that are seen."""

import math
from datetime import UTC, datetime
from random import Random

import msgspec
import numpy as np
import pytest
from scipy import stats

from pipeline.martingale import BINS_MAX, EXPONENTS, Martingale, place

AT = datetime(2025, 1, 1, tzinfo=UTC)
DELTA = 0.1
RUNS = 300
LENGTH = 250
# With a true rate of DELTA more runs than this would alarm in 1 of 1,000 repetitions of the test.
MOST = int(stats.binom.ppf(0.999, RUNS, DELTA))

KINDS = {
    "normal": lambda rng: rng.normal(100, 2, LENGTH),
    "heavy-tailed": lambda rng: rng.standard_cauchy(LENGTH),
    "few-values": lambda rng: rng.integers(0, 3, LENGTH),
    "all-equal": lambda rng: np.zeros(LENGTH),
    "mixed-with-defects": lambda rng: np.where(rng.random(LENGTH) < 0.1, 50, 1) * rng.gamma(2.0, size=LENGTH),
}


def play(numbers, seed, *, delta=DELTA, martingale=None):
    """The index at which the alarm was raised, or None."""
    martingale = martingale or Martingale()
    rng = Random(seed)
    for k, number in enumerate(numbers):
        if martingale.take(float(number), limit=math.log(1 / delta), at=AT, frame_id=str(k), rng=rng):
            return k
    return None


def test_a_rank_is_what_the_equation_says():
    rng = np.random.default_rng(0)
    numbers = rng.integers(-4, 4, 200).astype(float)
    martingale = Martingale()
    for n, number in enumerate(numbers, start=1):
        u = rng.uniform(0.01, 1)
        p = martingale.rank(number, u)
        so_far = numbers[:n]
        assert p == pytest.approx(((so_far > number).sum() + u * (so_far == number).sum()) / n)


@pytest.mark.parametrize("kind", KINDS)
def test_false_alarms_stay_within_the_bound(kind):
    alarms = sum(play(KINDS[kind](np.random.default_rng(seed)), seed) is not None for seed in range(RUNS))
    assert alarms <= MOST


def test_p_values_of_a_fixed_calibration_set_would_break_the_bound():
    alarms = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        calibration = np.sort(rng.normal(size=40))
        martingale = Martingale()
        for number in rng.normal(size=2 * LENGTH):
            p = (40 - np.searchsorted(calibration, number) + rng.uniform(0, 1)) / 41
            martingale.seen += 1
            martingale.bet(float(p))
            if martingale.log_value >= math.log(1 / DELTA):
                alarms += 1
                break
    assert alarms > MOST


def test_a_bet_gains_nothing_on_average_over_uniform_p_values():
    fresh = msgspec.json.encode(Martingale())
    for past in ([], [0.01] * 5, [0.9, 0.99, 0.999], [0.5] * 50):
        before = msgspec.json.decode(fresh, type=Martingale)
        for p in past:
            before.seen += 1
            before.bet(p)
        kept = msgspec.json.encode(before)

        def gain(p, kept=kept, before=before):
            fields = msgspec.json.decode(kept)
            after = Martingale(log_betting=fields["log_betting"], shares=fields["shares"])
            after.seen = before.seen + 1
            after.bet(p)
            return math.exp(after.log_value - before.log_value)

        # Most of what a power pays lies near 0 and 1: integrate over log p there.
        x = np.linspace(-34.5, math.log(0.5), 1500)
        low = np.trapezoid([gain(math.exp(each)) * math.exp(each) for each in x], x)
        high = np.trapezoid([gain(1 - math.exp(each)) * math.exp(each) for each in x], x)
        # p-values below 1e-15 are left out: at most (1e-15)^0.1 = 3 % of either side's.
        assert 0.93 < low + high <= 1.001


@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_a_shift_is_seen_with_its_direction_even_after_a_long_good_run(shift):
    rng = np.random.default_rng(1)
    numbers = np.concatenate([rng.normal(50, 1, 20_000), rng.normal(50 + shift, 1, 100)])
    martingale = Martingale()
    raised = play(numbers, 1, delta=0.001, martingale=martingale)
    assert 20_000 <= raised < 20_040
    assert martingale.alarm.direction == ("higher" if shift > 0 else "lower")
    assert martingale.alarm.frame_id == str(raised)
    assert martingale.alarm.seen == raised + 1


def test_a_slow_change_is_seen():
    rng = np.random.default_rng(2)
    numbers = rng.normal(50, 1, 600) + np.clip(np.arange(600) - 400, 0, None) * 0.02
    assert 400 <= play(numbers, 2, delta=0.001) < 520


def test_an_alarm_says_since_when():
    rng = np.random.default_rng(3)
    martingale, at = Martingale(), {}
    for k, number in enumerate(np.concatenate([rng.normal(0, 1, 300), rng.normal(4, 1, 50)])):
        at[k] = datetime.fromtimestamp(k, UTC)
        alarm = martingale.take(float(number), limit=math.log(1000), at=at[k], frame_id=str(k), rng=Random(k))
        if alarm:
            break
    assert at[280] < alarm.since <= at[302] < alarm.at == at[k]


def test_a_raised_alarm_stands_and_nothing_more_is_taken():
    rng = np.random.default_rng(4)
    martingale = Martingale()
    play(np.concatenate([rng.normal(0, 1, 100), rng.normal(9, 1, 100)]), 4, martingale=martingale)
    kept = msgspec.json.encode(martingale)
    assert martingale.alarm is not None
    assert play(rng.normal(9, 1, 100), 4, martingale=martingale) is None
    assert msgspec.json.encode(martingale) == kept


def test_a_state_goes_through_json_and_on_as_before():
    numbers = np.random.default_rng(5).normal(10, 1, 300)
    whole, first = Martingale(), Martingale()
    rng_whole, rng_split = Random(5), Random(5)
    for number in numbers:
        whole.take(number, limit=99, at=AT, frame_id="", rng=rng_whole)
    for number in numbers[:150]:
        first.take(number, limit=99, at=AT, frame_id="", rng=rng_split)
    again = msgspec.json.decode(msgspec.json.encode(first), type=Martingale)
    for number in numbers[150:]:
        again.take(number, limit=99, at=AT, frame_id="", rng=rng_split)
    assert msgspec.json.encode(again) == msgspec.json.encode(whole)


@pytest.mark.parametrize(
    "damage",
    [
        {"seen": 7},
        {"counts": [1]},
        {"keys": [3, 1], "counts": [1, 1], "seen": 2},
        {"keys": [1], "counts": [0], "seen": 0},
        {"shares": [1.0]},
        {"log_betting": "much"},
    ],
)
def test_a_damaged_state_is_refused(damage):
    state = msgspec.json.decode(msgspec.json.encode(Martingale())) | damage
    with pytest.raises(ValueError, match=r"ranks|Expected"):
        msgspec.json.decode(msgspec.json.encode(state), type=Martingale)


def test_the_grid_ascends_and_is_bounded():
    rng = np.random.default_rng(6)
    numbers = np.sort(np.concatenate([rng.normal(0, 10.0**k, 500) for k in range(-14, 15)]))
    places = [place(float(number)) for number in numbers]
    assert places == sorted(places)
    ends = [place(end) for end in (-1e300, 1e300)]
    assert ends[1] - ends[0] < BINS_MAX
    assert place(1e-300) == place(0.0) == 0
    assert place(100.0) < place(100.1)  # a tenth of a grey level is told apart


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_refused(number):
    with pytest.raises(ValueError, match="finite"):
        Martingale().take(number, limit=9, at=AT, frame_id="", rng=Random(0))


def test_extreme_p_values_overflow_nothing():
    martingale = Martingale()
    for p in (1.0, 1e-300, 0.0, *[1e-18] * 300, *[1.0] * 300):
        martingale.seen += 1
        martingale.bet(p)
        assert math.isfinite(martingale.log_value)
    assert len(EXPONENTS) * 2 == len(martingale.shares)
