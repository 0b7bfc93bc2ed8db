"""Defective parts that passed are in the pool: no refit that lost more than a point of recall goes live."""

from collections.abc import Iterator

import pytest

from pipeline import threads
from pipeline.backbone import resolve
from tests import attack_pictures, poisoning
from tests.poisoning import POINT_NEEDS, Target

SHARES = (0.01, 0.1)
DAYS = 3


@pytest.fixture(scope="module", params=["padim", "patchcore"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    backbone = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=()).remembering(300_000_000)
    pictures = attack_pictures.drawn("cap", size=(96, 96), goods=160, line=70, defects=32, others=0)
    assert len(pictures.golden) >= POINT_NEEDS
    with threads.limited(1):
        yield Target(pictures, request.param, backbone)


@pytest.mark.parametrize("share", SHARES)
def test_no_refit_from_a_poisoned_pool_loses_more_than_a_point_of_recall(target: Target, share: float) -> None:
    came = poisoning.missed_defects(target, share, "nothing")
    assert came.poison >= 1
    assert came.harmful == 0, came


def test_no_refit_under_a_slow_drift_loses_more_than_a_point_of_recall(target: Target) -> None:
    came = poisoning.slow_drift(target, "drift monitors", days=DAYS, a_day=40)
    assert came.tried == DAYS
    assert came.harmful == 0, came
