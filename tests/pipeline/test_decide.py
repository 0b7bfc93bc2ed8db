"""Thresholds that hold what they promise, and verdicts that follow from them."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.data import Decision, Images, Reason, Scores
from pipeline.decide import Threshold, calibrate, decide, regions, tail_quantile
from pipeline.decode import Decoded, Placement
from pipeline.errors import ArtifactError, ConfigError, FitError
from pipeline.guarantee import allowed, needed, promise, provable

SAME = Placement((64, 64), 0.0, 0.0, 1.0, 1.0)


def scores(image, maps=None):
    image = torch.as_tensor(np.asarray(image), dtype=torch.float32)
    return Scores(image, image.view(-1, 1, 1).expand(-1, 4, 4) if maps is None else torch.as_tensor(maps))


def batch(n, placement=SAME):
    pixels = torch.zeros(n, 3, *placement.image_size, dtype=torch.uint8)
    ids = tuple(f"f{k}" for k in range(n))
    return Decoded(images=Images(pixels), frame_ids=ids, placements=(placement,) * n, failures=())


def painted(*spots, size=(64, 64)):
    """A map of zeros with (rows, columns, height) set."""
    out = np.zeros(size, np.float32)
    for rows, columns, height in spots:
        out[rows, columns] = height
    return out


@pytest.mark.parametrize(
    ("n", "rate", "k"),
    [
        (1_000, 0.01, 4), (1_000, 0.005, 1), (1_000, 0.001, None),
        (2_000, 0.01, 12), (2_000, 0.005, 4), (2_000, 0.001, None),
        (5_000, 0.01, 38), (5_000, 0.005, 16), (5_000, 0.001, 1),
        (10_000, 0.01, 83), (10_000, 0.005, 38), (10_000, 0.001, 4),
    ],
)  # fmt: skip
def test_allowed_exceedances_are_the_table_s(n, rate, k):
    assert allowed(n, rate) == k


@pytest.mark.parametrize(("rate", "n"), [(0.01, 299), (0.005, 598), (0.001, 2995)])
def test_the_fewest_goods_are_the_table_s(rate, n):
    assert needed(rate) == n
    assert allowed(n, rate) == 0
    assert allowed(n - 1, rate) is None


@pytest.mark.parametrize("rate", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_allowed_is_the_largest_k_that_proves_the_rate(rate, confidence):
    for n in (1, 10, 137, 700):
        k = allowed(n, rate, confidence)
        assert stats.binom.cdf(-1 if k is None else k, n, rate) <= 1 - confidence
        assert stats.binom.cdf(0 if k is None else k + 1, n, rate) > 1 - confidence


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("n", "k"), [(5, 0), (59, 0), (100, 1), (1_000, 4), (1_000, 999)])
def test_the_smallest_provable_rate_is_the_one_at_which_k_is_allowed(n, k, confidence):
    rate = provable(n, k, confidence)
    assert stats.binom.cdf(k, n, rate) == pytest.approx(1 - confidence)
    assert allowed(n, rate * (1 + 1e-9), confidence) == k
    assert (allowed(n, rate * (1 - 1e-9), confidence) or 0) == max(k - 1, 0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.5, 1e-9, math.nan, math.inf])
def test_a_rate_that_makes_no_sense_is_refused(rate):
    with pytest.raises(ConfigError, match=r"1e-06 to 0\.5"):
        calibrate(scores(range(100)), rate=rate)


def test_the_threshold_is_the_k_plus_first_largest_and_rejection_is_strict():
    goods = np.random.default_rng(0).permutation(1_000).astype(np.float32)
    threshold = calibrate(scores(goods), rate=0.01)
    assert threshold.image == 995  # k = 4: 999, 998, 997, 996 lie above
    assert threshold.pixel == 995
    assert (threshold.goods == np.arange(1_000)).all()
    assert threshold.guarantee == promise(1_000, 0.01)
    assert "at most 4 of 1000 calibration goods lie above the threshold" in str(threshold.guarantee)
    assert "as none of 60 calibration goods lie above the threshold" in str(promise(60, 0.05))
    verdicts, failures = decide(batch(3), scores([995, np.nextafter(np.float32(995), np.float32(996)), 0]), threshold)
    assert [v.decision for v in verdicts] == [Decision.PASS, Decision.REJECT, Decision.PASS]
    assert failures == []
    assert all(v.threshold == 995 for v in verdicts)


def test_the_pixel_threshold_comes_from_each_good_s_peak():
    maps = np.zeros((1_000, 4, 4), np.float32)
    maps[:, 1, 2] = np.arange(1_000) * 2
    assert calibrate(scores(np.arange(1_000), maps), rate=0.01).pixel == 1990


def test_too_few_goods_are_no_guarantee_and_say_so_in_numbers():
    threshold = calibrate(scores(np.linspace(1, 2, 50)), rate=0.005)
    assert not threshold.guarantee.holds
    assert str(threshold.guarantee).startswith("no guarantee: 50 calibration goods, 598 are needed")
    assert "0.005 of good parts rejected, with 95%" in str(threshold.guarantee)
    assert threshold.image >= 2


def test_fewer_than_5_goods_make_no_threshold():
    with pytest.raises(FitError, match=r"4 calibration goods; at least 5 .* 299 to promise"):
        calibrate(scores(range(4)), rate=0.01)
    assert calibrate(scores(range(5)), rate=0.01).guarantee.goods == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_calibration_score_that_is_not_finite_is_refused(bad):
    values = np.ones(20, np.float32)
    values[7] = bad
    with pytest.raises(FitError, match="not finite"):
        calibrate(scores(values), rate=0.01)
    with pytest.raises(FitError, match="not finite"):
        calibrate(scores(np.ones(20), values.reshape(20, 1, 1).repeat(4, 1)), rate=0.01)


@pytest.mark.parametrize("shape", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("rate", [0.01, 0.001])
def test_the_tail_is_near_the_truth_and_near_scipy_s_fit(shape, rate):
    source = stats.genpareto(shape)
    n, ours, theirs = 2_000, [], []
    for seed in range(20):
        values = np.sort(source.rvs(n, random_state=seed))
        ours.append(tail_quantile(values, rate))
        start = values[n - 401]
        c, _, scale = stats.genpareto.fit(values[n - 400 :] - start, floc=0)
        theirs.append(start + stats.genpareto.isf(rate * n / 400, c, scale=scale))
    assert np.median(ours) == pytest.approx(source.isf(rate), rel=0.15)
    assert np.median(ours) == pytest.approx(np.median(theirs), rel=0.1)
    assert np.median(np.abs(np.divide(ours, theirs) - 1)) < 0.2


@pytest.mark.parametrize("n", [5, 6, 11, 40, 298, 2_000])
def test_a_smaller_rate_never_lowers_the_tail_s_quantile(n):
    for seed in range(5):
        values = np.sort(np.random.default_rng(seed).normal(size=n))
        cuts = [tail_quantile(values, rate) for rate in np.geomspace(0.49, 1e-5, 60)]
        assert (np.diff(cuts) >= -1e-9).all()
        assert np.isfinite(cuts).all()


def test_equal_goods_have_a_tail_too():
    assert tail_quantile(np.full(30, 7.0), 0.01) == 7.0


def test_a_p_value_is_the_share_of_goods_at_least_as_anomalous():
    threshold = calibrate(scores([1, 2, 2, 3, 4, 5, 6, 7, 8]), rate=0.3)
    assert [threshold.p_value(s) for s in (9, 8, 2, 2.5, 0)] == [1 / 10, 2 / 10, 9 / 10, 7 / 10, 1.0]


def test_a_p_value_is_conformal_with_ties_too():
    """Of n + 1 exchangeable scores any may be the new one: for each j, at most j of them have p <= j / (n + 1)."""
    rng = np.random.default_rng(0)
    for kinds in (1, 2, 3, 10, 10**6):  # from all alike to none
        for n in (5, 19, 58):
            drawn = rng.integers(kinds, size=n + 1).astype(np.float32)
            ps = [calibrate(scores(np.delete(drawn, i)), rate=0.1).p_value(float(drawn[i])) for i in range(n + 1)]
            at_most = [sum(p <= j / (n + 1) + 1e-12 for p in ps) for j in range(1, n + 2)]
            assert all(count <= j for j, count in enumerate(at_most, start=1))
            if len(set(drawn)) == n + 1:
                assert at_most == list(range(1, n + 2)), "without ties it is exact"


@pytest.mark.parametrize("kinds", [3, 40, 10**6])
def test_rejected_is_what_has_a_p_value_of_k_plus_1_at_most(kinds):
    drawn = np.random.default_rng(kinds).integers(kinds, size=1_000)
    threshold = calibrate(scores(drawn), rate=0.01)
    k = threshold.guarantee.allowed
    assert k == 4
    assert threshold.above <= k
    for score in {*drawn[:50].tolist(), *np.sort(drawn)[-9:].tolist(), kinds}:
        assert (score > threshold.image) == (threshold.p_value(score) <= (k + 1) / 1_001)


def test_p_values_are_uniform_if_goods_are_exchangeable():
    rng = np.random.default_rng(1)
    values = []
    for _ in range(2_000):
        drawn = rng.normal(size=20)
        values.append(calibrate(scores(drawn[:19]), rate=0.1).p_value(np.float32(drawn[19])))
    counts = np.bincount(np.rint(np.multiply(values, 20)).astype(int), minlength=21)[1:]
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_a_failure_never_a_pass(bad):
    threshold = calibrate(scores(range(10)), rate=0.1)
    verdicts, failures = decide(batch(3), scores([0, bad, 100], np.zeros((3, 64, 64), np.float32)), threshold)
    assert [v.frame_id for v in verdicts] == ["f0", "f2"]
    assert [(f.frame_id, f.reason) for f in failures] == [("f1", Reason.ERROR)]
    maps = np.zeros((3, 64, 64), np.float32)
    maps[1, 5, 5] = bad
    verdicts, failures = decide(batch(3), scores([0, 0, 0], maps), threshold)
    assert [f.frame_id for f in failures] == ["f1"]


def test_regions_are_boxes_peaks_and_areas_in_image_pixels():
    m = painted((slice(10, 14), slice(20, 26), 1.0), (11, 24, 2.0))
    (region,) = regions(m, 0.5, SAME)
    assert (region.box, region.peak, region.area_px) == ((20, 10, 26, 14), (24, 11), 24)
    whole = Placement((320, 128), 0.0, 0.0, 2.0, 5.0)  # twice as wide, five times as high
    (region,) = regions(m, 0.5, whole)
    assert (region.box, region.peak, region.area_px) == ((40, 50, 52, 70), (49, 57), 240)
    crop = Placement((200, 300), 30.5, 10.25, 1.5, 1.5)
    (region,) = regions(m, 0.5, crop)
    assert (region.box, region.peak, region.area_px) == ((60, 25, 70, 32), (67, 27), 54)


def test_regions_stay_inside_the_picture():
    m = painted((slice(60, 64), slice(60, 64), 1.0), (0, 0, 1.0))
    for placement in (Placement((5, 5), 0.0, 0.0, 5 / 64, 5 / 64), Placement((97, 101), 0.0, 0.0, 101 / 64, 97 / 64)):
        height, width = placement.image_size
        for region in regions(m, 0.5, placement):
            x0, y0, x1, y1 = region.box
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            assert x0 <= region.peak[0] < x1
            assert y0 <= region.peak[1] < y1
            assert region.area_px >= 1


def test_diagonal_neighbours_are_one_region():
    assert len(regions(painted((3, 3, 1.0), (4, 4, 1.0), (3, 5, 1.0)), 0.5, SAME)) == 1
    assert len(regions(painted((3, 3, 1.0), (3, 5, 1.0)), 0.5, SAME)) == 2


def test_a_region_is_strictly_above_the_threshold():
    assert regions(painted((3, 3, 0.5)), 0.5, SAME) == ()


def test_at_most_20_regions_the_highest_peak_first():
    m = np.zeros((64, 64), np.float32)
    heights = np.random.default_rng(3).permutation(1024).astype(np.float32) + 1
    m[::2, ::2] = heights.reshape(32, 32)
    found = regions(m, 0.5, SAME)
    assert [m[r.peak[1], r.peak[0]] for r in found] == list(range(1024, 1004, -1))


def test_a_region_s_peak_lies_in_it_though_a_neighbour_in_its_box_is_higher():
    m = painted((slice(0, 9), 8, 1.0), (8, slice(0, 9), 1.0), (0, 2, 9.0))
    inner, outer = regions(m, 0.5, SAME)
    assert inner.peak == (2, 0)
    assert outer.peak == (8, 0)
    assert outer.area_px == 17


def test_a_threshold_survives_its_meta():
    threshold = calibrate(scores(np.random.default_rng(0).normal(size=700)), rate=0.005)
    meta = json.loads(json.dumps(threshold.to_meta()))
    again = Threshold.from_meta(meta, torch.from_numpy(threshold.goods))
    assert (again.image, again.pixel, again.guarantee) == (threshold.image, threshold.pixel, threshold.guarantee)
    assert (again.goods == threshold.goods).all()


GOODS = torch.arange(300, dtype=torch.float32)
META = calibrate(scores(GOODS.numpy()), rate=0.01).to_meta()


@pytest.mark.parametrize(
    "change",
    [
        {"image": None}, {"image": "1"}, {"image": math.nan}, {"image": math.inf}, {"image": 10**400}, {"image": True},
        {"image": 298.9}, {"guarantee": META["guarantee"] | {"rate": 5e-324, "holds": False, "goods_needed": 1}},
        {"pixel": math.nan}, {"pixel": [1]}, {"guarantee": None}, {"guarantee": {}}, {"guarantee": []},
        {"guarantee": META["guarantee"] | {"rate": "low"}}, {"guarantee": META["guarantee"] | {"holds": 1}},
        {"guarantee": META["guarantee"] | {"rate": 0.0}}, {"guarantee": META["guarantee"] | {"confidence": 1.0}},
        {"guarantee": META["guarantee"] | {"rate": math.nan}}, {"guarantee": META["guarantee"] | {"goods": 10**30}},
        {"guarantee": META["guarantee"] | {"rate": 1e-4}}, {"guarantee": META["guarantee"] | {"goods": 3_000}},
    ],
    ids=lambda change: f"{change}"[:60],
)  # fmt: skip
def test_a_hostile_threshold_is_refused(change):
    Threshold.from_meta(META, GOODS)
    with pytest.raises(ArtifactError):
        Threshold.from_meta(META | change, GOODS)


@pytest.mark.parametrize("key", list(META))
def test_an_incomplete_threshold_is_refused(key):
    with pytest.raises(ArtifactError):
        Threshold.from_meta({k: v for k, v in META.items() if k != key}, GOODS)


@pytest.mark.parametrize(
    "goods",
    [torch.empty(0), GOODS.view(10, 30), torch.tensor(1.0), GOODS.masked_fill(GOODS == 5, math.nan), GOODS[:200]],
    ids=["none", "2-d", "0-d", "nan", "fewer than promised"],
)
def test_hostile_calibration_scores_are_refused(goods):
    with pytest.raises(ArtifactError):
        Threshold.from_meta(META, goods)


@pytest.mark.parametrize("meta", [[], "text", 3])
def test_a_threshold_that_is_no_table_is_refused(meta):
    with pytest.raises(ArtifactError):
        Threshold.from_meta(meta, GOODS)
