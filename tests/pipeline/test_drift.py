"""A station's monitors: drift is raised soon, false alarms stay within their rate, a state outlives its process."""

import json
import math
from datetime import UTC, datetime
from random import Random

import numpy as np
import pytest
from scipy import stats

from pipeline import drift
from pipeline.appearance import Appearance
from pipeline.drift import MONITORS, REFERENCE_FRAMES, SCORE, Drift
from tests.benchmarks.drift import DELTA, DRIFTS, Change, Seen, draw, no_score, play, shuffled

AT = datetime(2025, 1, 1, tzinfo=UTC)
BEFORE = REFERENCE_FRAMES + 120

# What must be raised, and a monitor that is meant to: within so many parts.
EXPECTED = {
    "lamp ages 0.1 % a part": ("exposure", 200),
    "defocus of 0.7 px": ("sharpness", 40),
    "camera bumped by 5 px": ("shift_x", 40),
    "camera turned by 1 degree": ("turn", 80),
    "colour lot 10 % greener": ("tint", 40),
}


def with_scores(pictures, rng, mean=10.0):
    return [Seen(each.appearance, float(rng.gamma(20, mean / 20))) for each in pictures]


def made(k, *, size=(64, 64)):
    """An appearance from random numbers: no picture is needed where none is looked at."""
    rng = np.random.default_rng(k)
    return Appearance(
        numbers={name: float(rng.normal(5, 1)) for name in ("exposure", "warmth", "tint", "sharpness")},
        thumbnail=rng.normal(100, 5, (64, 64)).astype(np.float32),
        size=size,
    )


def feed(watched, count, *, first=0, score=lambda k: 1.0 + 0.01 * (k % 7), version="a", size=(64, 64)):
    raised = []
    for k in range(first, first + count):
        raised += watched.see(made(k, size=size), score=score(k), version=version, at=AT, frame_id=str(k))
    return raised


@pytest.fixture(scope="module")
def goods():
    return draw("board", range(BEFORE), lambda _: Change(), no_score)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_kind_of_drift_is_raised_within_200_parts(goods, name):
    monitor, within = EXPECTED[name]
    after = draw("board", range(900_000, 900_000 + within), DRIFTS[name], no_score)
    for seed in range(3):
        raised = play([*shuffled(goods, BEFORE, seed), *after], delta=DELTA, seed=seed)
        assert monitor in raised, raised
        assert min(raised.values()) >= BEFORE, raised


def test_a_rise_of_the_scores_alone_is_raised(goods):
    rng = np.random.default_rng(0)
    before, after = with_scores(goods, rng), with_scores(goods[:60], rng, mean=16)
    assert play([*before, *after], delta=DELTA, seed=0).keys() == {SCORE}


def test_a_station_raises_false_alarms_within_its_rate(goods):
    runs, delta = 60, 0.1
    alarms = 0
    for seed in range(runs):
        pictures = with_scores(shuffled(goods, BEFORE, seed), np.random.default_rng(seed))
        alarms += bool(play(pictures, delta=delta, seed=seed))
    # With a true rate of delta, more would be seen in 1 of 1,000 repetitions of this test.
    assert alarms <= stats.binom.ppf(0.999, runs, delta)


def test_the_rate_is_split_between_the_monitors():
    assert Drift(0.01).limit == pytest.approx(math.log(len(MONITORS) / 0.01))


def test_an_alarm_is_told_once():
    watched = Drift(0.01, rng=Random(0))
    assert not feed(watched, 100)
    raised = feed(watched, 100, first=100, score=lambda _: 9.0)
    assert [each.monitor for each in raised] == [SCORE]
    assert watched.baseline.monitors[SCORE].alarm == raised[0].alarm
    assert int(raised[0].alarm.frame_id) < 115


def test_rejects_count_for_the_picture_and_not_for_the_score():
    watched = Drift(0.01, rng=Random(0))
    feed(watched, 50)
    feed(watched, 20, first=50, score=lambda _: None)
    seen = {name: watched.baseline.monitors[name].seen for name in ("exposure", "turn", SCORE)}
    assert seen == {"exposure": 70, "turn": 70 - REFERENCE_FRAMES, SCORE: 50}


def test_another_model_begins_the_scores_anew_and_nothing_else():
    watched = Drift(0.01, rng=Random(0))
    feed(watched, 50)
    assert not feed(watched, 50, first=50, version="b", score=lambda k: 900.0 + k % 5)
    assert watched.baseline.monitors[SCORE].seen == 50
    assert watched.baseline.monitors["exposure"].seen == 100


def test_pictures_of_another_size_begin_everything_anew():
    watched = Drift(0.01, rng=Random(0))
    feed(watched, 50)
    feed(watched, 10, first=50, size=(96, 64))
    assert {watched.baseline.monitors[name].seen for name in ("exposure", SCORE)} == {10}
    assert watched.baseline.reference.frames == 10


@pytest.mark.parametrize("at", [10, REFERENCE_FRAMES, 70])
def test_a_baseline_goes_through_json_and_on_as_before(at):
    whole, first = Drift(0.01, rng=Random(3)), Drift(0.01, rng=(rng := Random(3)))
    feed(whole, 100)
    feed(first, at)
    again = Drift(0.01, drift.decode(drift.encode(first.baseline)), rng=rng)
    feed(again, 100 - at, first=at)
    assert drift.encode(again.baseline) == drift.encode(whole.baseline)


def damaged(**changes):
    watched = Drift(0.01, rng=Random(0))
    feed(watched, 5)
    state = json.loads(drift.encode(watched.baseline))
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = state
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return json.dumps(state).encode()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        damaged(monitors={}),
        damaged(monitors__score__seen=99),
        damaged(reference__frames=33),
        damaged(reference__total="AAAA"),
        damaged(reference__total="?"),
        damaged(size=[1]),
    ],
)
def test_a_damaged_state_is_refused(value):
    with pytest.raises(ValueError, match=r"."):
        drift.decode(value)
    assert drift.decode(damaged()).size == (64, 64)
