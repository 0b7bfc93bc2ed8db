"""Promised rates by simulation: 1,000 calibrations each, on distributions whose true rate above a threshold is known.

A promise may be broken by a share of 5 % of all calibrations. A count of broken ones among 1,000 is binomial: a case
fails where its count has a tail probability below 1e-5, so that by chance one of them would for one seed in a thousand.
Without ties the probability of a broken promise is known exactly, and the count is held to it from both sides.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.data import Scores
from pipeline.decide import calibrate
from pipeline.guarantee import allowed, promise

CALIBRATIONS = 1_000
CHANCE = 1e-5
PROMISED = [(5, 0.46), (14, 0.2), (29, 0.1), (59, 0.05), (100, 0.05), (300, 0.01), (1_000, 0.01), (1_000, 0.005)]


class Bimodal:
    """Nine parts in ten from one mould, one from another."""

    def rvs(self, size, random_state):
        second = random_state.random(size) < 0.1
        return random_state.normal(np.where(second, 6.0, 0.0), np.where(second, 0.5, 1.0))

    def sf(self, x):
        return 0.9 * stats.norm.sf(x) + 0.1 * stats.norm.sf(x, 6.0, 0.5)


CONTINUOUS = {
    "normal": stats.norm(),
    "lognormal": stats.lognorm(1.0),
    "heavy tail": stats.pareto(1.2),
    "bimodal": Bimodal(),
}
TIED = {"some ties": stats.poisson(20), "many ties": stats.poisson(2), "mostly zero": stats.poisson(0.05)}


def scores(values):
    image = torch.as_tensor(values, dtype=torch.float32)
    return Scores(image, image.view(-1, 1, 1))


def broken(source, n, rate, seed):
    """How many of 1,000 calibrations on n goods reject more than `rate` of all good parts."""
    drawn = np.asarray(source.rvs(size=(CALIBRATIONS, n), random_state=np.random.default_rng(seed)), np.float32)
    k = allowed(n, rate)
    assert k is not None
    lines = np.sort(drawn, axis=1)[:, n - 1 - k]
    for row, line in zip(drawn[:10], lines, strict=False):
        threshold = calibrate(scores(row), rate=rate)
        assert threshold.guarantee.holds
        assert threshold.image == line
    return int((source.sf(lines.astype(np.float64)) > rate).sum())


@pytest.mark.parametrize(("n", "rate"), PROMISED)
@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_promise_is_broken_as_often_as_it_says_and_no_more(name, n, rate):
    exactly = stats.binom.cdf(allowed(n, rate), n, rate)
    assert exactly <= 0.05
    least, most = stats.binom.ppf([CHANCE, 1 - CHANCE], CALIBRATIONS, exactly)
    assert least <= broken(CONTINUOUS[name], n, rate, seed=n) <= most


@pytest.mark.parametrize(("n", "rate"), PROMISED)
@pytest.mark.parametrize("name", TIED)
def test_equal_scores_break_no_promise(name, n, rate):
    assert broken(TIED[name], n, rate, seed=n) <= stats.binom.ppf(1 - CHANCE, CALIBRATIONS, 0.05)


@pytest.mark.parametrize(("n", "rate"), PROMISED)
def test_one_more_exceedance_would_break_it(n, rate):
    """What the simulation can tell: k + 1 in place of k is found out."""
    k = allowed(n, rate)
    drawn = np.sort(np.random.default_rng(n).random((CALIBRATIONS, n)), axis=1)
    too_often = int((1 - drawn[:, n - 2 - k] > rate).sum())
    assert too_often > stats.binom.ppf(1 - CHANCE, CALIBRATIONS, stats.binom.cdf(k, n, rate))


@pytest.mark.parametrize(("n", "rate"), [(5, 0.1), (20, 0.05), (58, 0.05), (298, 0.01), (300, 0.005), (1_000, 0.001)])
def test_with_too_few_goods_it_says_no_guarantee(n, rate):
    threshold = calibrate(scores(np.random.default_rng(n).normal(size=n)), rate=rate)
    assert not threshold.guarantee.holds
    assert str(threshold.guarantee).startswith(f"no guarantee: {n} calibration goods")
    assert promise(threshold.guarantee.goods_needed, rate).holds
    assert not promise(threshold.guarantee.goods_needed - 1, rate).holds


@pytest.mark.parametrize("name", ["lognormal", "heavy tail", "bimodal"])
def test_no_guarantee_is_none(name):
    """The fitted tail misses its rate far more often than a promise may: the label is due."""
    source, rng, times = CONTINUOUS[name], np.random.default_rng(0), 200
    lines = [calibrate(scores(source.rvs(size=20, random_state=rng)), rate=0.01).image for _ in range(times)]
    assert (source.sf(np.asarray(lines)) > 0.01).sum() > stats.binom.ppf(1 - CHANCE, times, 0.05)


def test_goods_that_the_threshold_selected_break_the_promise_and_unselected_ones_do_not():
    """Truncation: calibrated again and again on accepted goods alone, the rate of false rejects grows.

    Scores are ranks (uniform), so that the true rate above a threshold t is 1 - t. With k = 0 of n goods each round
    adds an exponential of mean 1/n to it: after r rounds a promise of 3/n is broken with P(Gamma(r + 1) > 3).
    """
    n, rate, rounds = 300, 0.01, 5
    rng = np.random.default_rng(7)
    assert allowed(n, rate) == 0

    def again(below):
        return (below[:, None] * rng.random((CALIBRATIONS, n))).max(axis=1)  # accepted: at or below the threshold

    everything = np.ones(CALIBRATIONS)
    line = again(everything)
    for done in range(1, rounds + 1):
        line = again(line)
        expected = stats.gamma.sf(n * rate, done + 1)
        assert expected > 0.19
        assert (1 - line > rate).mean() == pytest.approx(expected, abs=0.07)
        assert (1 - again(everything) > rate).sum() <= stats.binom.ppf(1 - CHANCE, CALIBRATIONS, 0.05)
