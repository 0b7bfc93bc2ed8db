"""Defective parts that passed are in the pool: what that does to recall on defects that no rule of a review knows.

Harm is more than a point of recall lost on 408 independent defects with 95 % certainty: where a tenth of them changes
sides, the standard error of a loss is 1.6 points, so that a loss of less than about 4 points is not told from none.

The seed is one at which a clean refit of PatchCore goes live. It did at two of twelve (seeds 0 to 2, 64 and 96 px,
other coresets): the bank is chosen anew, defects near the threshold change sides, and no gain makes up for a loss.
"""

from collections.abc import Iterator

import pytest

from pipeline import threads
from pipeline.backbone import resolve
from tests import attack_pictures, poisoning
from tests.poisoning import POINT_NEEDS, Target

SHARES = (0.01, 0.1)
DAYS = 3
A_DAY = 40


@pytest.fixture(scope="module", params=["padim", "patchcore"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    backbone = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=()).remembering(300_000_000)
    # Of 170 goods 68 calibrate: nine tenths of them, as the review compares, still keep the promise of 59.
    pictures = attack_pictures.drawn("cap", size=(64, 64), goods=170, line=70, defects=32, others=408, seed=1)
    assert len(pictures.golden) >= POINT_NEEDS
    with threads.limited(1):
        yield Target(pictures, request.param, backbone, seed=1)


def test_a_clean_pool_goes_live(target: Target) -> None:
    made = target.refitted(target.model, target.pictures.line, "nothing")
    assert made.review.complete, made.review
    assert made.candidate is not None
    assert not target.harmed(made.candidate)


@pytest.mark.parametrize("share", SHARES)
def test_no_refit_from_a_poisoned_pool_loses_more_than_a_point_of_recall(target: Target, share: float) -> None:
    came = poisoning.missed_defects(target, share, "nothing")
    assert came.poison >= 1
    assert came.harmful == 0, came


def test_no_refit_under_a_slow_drift_loses_more_than_a_point_of_recall(target: Target) -> None:
    came = poisoning.slow_drift(target, "drift monitors", days=DAYS, a_day=A_DAY)
    assert came.tried == DAYS
    assert came.harmful == 0, came


def test_without_the_defences_a_slow_drift_does_harm_that_is_seen(target: Target) -> None:
    came = poisoning.slow_drift(target, "all", days=DAYS, a_day=A_DAY)
    assert came.harmful >= 1, came
