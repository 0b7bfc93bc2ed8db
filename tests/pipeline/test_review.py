"""The rules of a review one by one, at their bounds."""

import msgspec
import numpy as np
import pytest
from scipy import stats

from pipeline import review
from pipeline.guarantee import promise
from pipeline.refit_settings import Rules
from pipeline.review import RULES, Review

RULE = Rules()


def caught(n, missed=()):
    """n golden defects, all caught but these."""
    found = np.ones(n, dtype=bool)
    found[list(missed)] = False
    return found


@pytest.mark.parametrize(("left", "outcome"), [(49, "failed"), (50, "passed")])
def test_frames_must_be_enough(left, outcome):
    found = review.enough_frames(left, 70, RULE)
    assert (found.outcome, found.seen, found.needed) == (outcome, left, 50)


@pytest.mark.parametrize(("goods", "outcome"), [(0, "failed"), (29, "failed"), (30, "passed")])
def test_calibration_needs_verified_goods(goods, outcome):
    found = review.calibration(goods, promise(40, 0.01), 0.01, RULE)
    assert found.outcome == outcome
    assert ("goldline audit sample" in found.words) == (outcome == "failed")


def test_what_is_promised_now_is_not_given_up_silently():
    before = promise(299, 0.01)
    assert before.holds
    assert review.calibration(298, before, 0.01, RULE).outcome == "failed"
    assert review.calibration(299, before, 0.01, RULE).outcome == "passed"
    assert review.calibration(298, before, 0.005, RULE).outcome == "passed", "a stricter rate is another promise"


@pytest.mark.parametrize(("dropped", "outcome"), [(0, "passed"), (20, "passed"), (21, "failed")])
def test_a_pool_of_which_too_much_is_left_out_is_doubted(dropped, outcome):
    assert review.left_out("outliers", dropped, 100, 0.2, "they differ").outcome == outcome


@pytest.mark.parametrize(("share", "outcome"), [(0.25, "passed"), (0.26, "failed")])
def test_new_frames_have_a_share(share, outcome):
    assert review.new_share(share, 0.25).outcome == outcome


def test_distance_is_in_units_of_golden_goods_upper_half():
    held_out = np.linspace(0, 1, 101)  # median 0.5, 95 % quantile 0.95
    for above, outcome in [(0.44, "passed"), (0.46, "failed")]:
        found = review.distance([held_out + above], [held_out], RULE)
        assert found.seen == pytest.approx(above / 0.45)
        assert found.outcome == outcome
    assert review.distance([held_out - 5], [held_out], RULE).seen == 0, "nearer is no distance"
    assert review.distance([held_out, held_out + 9], [held_out, held_out], RULE).outcome == "failed", (
        "any number counts"
    )


def test_goods_that_are_all_alike_still_give_a_number_that_json_knows():
    found = review.distance([np.full(9, 2.0)], [np.ones(9)], RULE)
    assert found.outcome == "failed"
    assert msgspec.json.decode(msgspec.json.encode(found), type=review.Finding) == found


@pytest.mark.parametrize(("size", "outcome"), [(512_000_000, "passed"), (512_000_001, "failed")])
def test_a_model_has_a_largest_size(size, outcome):
    assert review.size(size, 100, RULE).outcome == outcome


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (4, 0), (5, 0), (9, 3), (12, 3), (0, 9), (30, 29)])
def test_goods_are_paired_in_an_exact_sign_test(worse, better):
    before, after = np.zeros(200, dtype=bool), np.zeros(200, dtype=bool)
    after[:worse] = True
    before[100 : 100 + better] = True
    before[150:160] = after[150:160] = True  # rejected by both: they say nothing
    found = review.goods(before, after, RULE)
    if worse + better:
        expected = stats.binomtest(worse, worse + better, 0.5, alternative="greater").pvalue
        assert found.seen == pytest.approx(expected)
    assert found.outcome == ("failed" if found.seen <= 0.05 else "passed")
    assert review.defects(~before, ~after, RULE).seen == pytest.approx(found.seen), "the same test, for what is missed"


@pytest.mark.parametrize(
    ("n", "gone", "outcome"),
    [
        (99, 0, "passed"),
        (99, 1, "failed"),
        (100, 1, "passed"),
        (100, 2, "failed"),
        (300, 3, "passed"),
        (300, 4, "failed"),
    ],
)
def test_a_point_of_recall_may_be_lost_where_there_are_enough_to_say(n, gone, outcome):
    found = review.lost("lost defects", caught(n), caught(n, range(gone)), RULE, "the model in service")
    assert (found.outcome, found.seen) == (outcome, gone)
    share = review.recall_lost(caught(n), caught(n, range(gone)))
    assert share == (pytest.approx(gone / n) if n >= 100 else None)


def test_a_defect_that_neither_catches_is_not_lost_and_gains_make_up_for_no_loss():
    assert review.lost("x", caught(30, [1]), caught(30, [1]), RULE, "it").seen == 0
    assert review.lost("x", caught(9, [1, 2, 3]), caught(9, [4]), RULE, "it").outcome == "failed"


@pytest.mark.parametrize(
    ("n", "missed", "outcome"),
    [(1, 0, "not checked"), (19, 0, "not checked"), (20, 0, "passed"), (99, 80, "not checked")],
)
def test_defects_say_something_where_the_model_in_service_catches_enough(n, missed, outcome):
    before = caught(n, range(missed))
    assert review.defects(before, before, RULE).outcome == outcome
    assert review.lost("lost defects", before, before, RULE, "it").outcome == outcome


def test_a_loss_among_few_defects_refuses_all_the_same():
    assert review.lost("lost defects", caught(5), caught(5, [0]), RULE, "it").outcome == "failed"
    assert review.defects(caught(5), caught(5, range(5)), RULE).outcome == "failed"


def test_without_golden_defects_nothing_is_claimed():
    none = np.zeros(0, dtype=bool)
    assert review.defects(none, none, RULE).outcome == "not checked"
    assert review.lost("lost defects", none, none, RULE, "it").outcome == "not checked"


def test_a_review_is_whole_and_says_what_speaks_against_it():
    findings = [review.new_share(0.9, 0.25), review.enough_frames(60, 60, RULE)]
    made = Review(findings=review.in_full(findings))
    assert tuple(f.rule for f in made.findings) == RULES
    assert (made.passed, made.complete) == (False, False)
    assert len(made.reasons) == 1
    assert made.reasons[0].startswith("new share: 90.0%")
    assert len(made.unchecked) == len(RULES) - 2


def test_what_was_not_checked_is_no_pass():
    findings = [review.enough_frames(60, 60, RULE), review.not_checked("defects", "none there")]
    made = Review(findings=tuple(findings))
    assert (made.passed, made.complete) == (True, False)


def test_a_review_comes_back_from_a_lineage_and_rubbish_does_not():
    made = Review(findings=(review.enough_frames(60, 60, RULE),), how="anew", recall_lost=0.01)
    assert review.read(msgspec.to_builtins(made)) == made
    for rubbish in (None, {}, {"findings": 3}, "passed", {"findings": [{"rule": "x", "outcome": "fine", "words": ""}]}):
        assert review.read(rubbish) is None
