"""From a model in service and a pool to a candidate: what is learnt, what is left out, what is refused."""

import hashlib
import io
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline import methods
from pipeline.backbone import resolve
from pipeline.commissioning import commission
from pipeline.coreset import extend, select
from pipeline.data import Frame, Images
from pipeline.decode import Limits
from pipeline.errors import ConfigError, FitError
from pipeline.gaussian import RunningSums
from pipeline.golden import draw, split
from pipeline.refit import Golden, refit
from pipeline.refit_settings import Refit, Rules, next_run
from pipeline.view import View
from tests.conformance.pictures import bad, config, good

VIEW = View(size=(64, 64))
RULES = Rules(frames_min=8, goods_min=12, defects_min=8, folds=3, frames_max=60)
OPEN = {"p_min": 0.0, "folds": 0, "new_share_max": 1.0, "distance_max": 1e5, "outliers_max": 1.0}


def frames(pixels: Tensor, name: str) -> list[Frame]:
    made = []
    for i, each in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(each.permute(1, 2, 0).numpy()).save(file, "PNG")
        made.append(Frame(frame_id=f"{name}-{i}", image=file.getvalue()))
    return made


@pytest.fixture(scope="module")
def backbone():
    return resolve("resnet18", ("layer1", "layer2"), weights=None, random_weights=True, factories=())


@pytest.fixture(scope="module")
def fitted():
    """What the parents were fitted and calibrated on."""
    return frames(good(40, seed=1), "fit")


@pytest.fixture(scope="module")
def parents(backbone, fitted):
    made = {}

    def parent(method):
        if method not in made:
            made[method] = commission(
                fitted,
                method=method,
                config=config(method),
                backbone=backbone,
                view=VIEW,
                limits=Limits(),
                rate=0.05,
            ).inspector
        return made[method]

    return parent


@pytest.fixture(scope="module")
def pool():
    return frames(good(20, seed=2), "pool")


@pytest.fixture(scope="module")
def golden():
    return Golden(goods=frames(good(30, seed=3), "good"), defects=frames(bad(8, seed=4), "defect"))


@pytest.fixture
def run(parents, pool, golden, backbone):
    def refit_it(method="patchcore", *, pooled=None, golden=golden, rules=None, parent=None, **options):
        rules = Rules(**{f: getattr(RULES, f) for f in RULES.__struct_fields__} | (rules or {}))
        parent = parent or parents(method)
        offered = pool if pooled is None else pooled
        return refit(parent, offered, golden, backbone=backbone, rules=rules, **options)

    return refit_it


def failed(made):
    return {finding.rule for finding in made.review.findings if finding.outcome == "failed"}


@pytest.mark.parametrize(("method", "how"), [("patchcore", "incremental"), ("padim", "incremental"), ("spade", "anew")])
def test_a_clean_pool_gives_a_candidate_that_nothing_speaks_against(run, golden, fitted, method, how):
    learnt = Golden(goods=(*golden.goods, *fitted[:30]), defects=golden.defects, learnt=digests(fitted))
    made = run(method, golden=learnt)
    assert made.review.reasons == ()
    assert (made.review.how, made.review.complete) == (how, True)
    assert made.used
    assert set(made.used) | made.left_out.keys() <= {f"pool-{i}" for i in range(20)}
    assert (made.fitted_on == ()) == (how == "incremental")
    verdicts = made.candidate.inspect(golden.defects).verdicts
    assert {verdict.decision for verdict in verdicts} == {"reject"}


def digests(those):
    return [hashlib.sha256(frame.image).hexdigest()[:12] for frame in those]


def test_the_parent_stays_as_it_is_and_a_seed_gives_the_same_candidate(run, parents):
    before = parents("patchcore").save()
    one, two = (run().candidate.save() for _ in range(2))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert one.meta == two.meta
    after = parents("patchcore").save()
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


def test_the_threshold_comes_from_golden_goods_alone(run, golden):
    made = run()
    assert set(made.calibrated_on) == {frame.frame_id for frame in golden.goods}
    scores = [verdict.score for verdict in made.candidate.inspect(golden.goods).verdicts]
    assert np.sort(scores) == pytest.approx(made.candidate.threshold.goods, rel=1e-4)


def test_goods_that_the_parent_has_learnt_from_do_not_calibrate(run, golden):
    seen = digests(golden.goods[:25])
    made = run(golden=Golden(goods=golden.goods, defects=golden.defects, learnt=seen))
    assert "calibration" in failed(made)
    assert made.review.finding("calibration").seen == 5
    assert made.candidate is None


def test_without_golden_goods_there_is_no_candidate_and_the_review_says_why(run):
    made = run(golden=Golden())
    assert made.candidate is None
    assert failed(made) == {"calibration"}
    assert "accepted frames cannot" in made.review.finding("calibration").words


def test_without_golden_defects_misses_are_not_checked(run, golden):
    made = run(golden=Golden(goods=golden.goods))
    assert (made.review.passed, made.review.complete, made.review.recall_lost) == (True, False, None)
    assert {reason.partition(":")[0] for reason in made.review.unchecked} == {"defects", "lost defects"}


def test_few_frames_are_refused_before_anything_is_fitted(run, pool):
    made = run(pooled=pool[:7])
    assert failed(made) == {"frames"}
    assert made.review.finding("distance").outcome == "not checked"


def test_frames_that_the_parent_rejects_now_are_left_out(run, pool):
    poison = frames(bad(3, seed=9), "poison")
    made = run(pooled=[*pool, *poison])
    assert {f.frame_id for f in poison} <= made.left_out.keys()
    assert all("the model in service gives it p" in made.left_out[f.frame_id] for f in poison)


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_frames_unlike_the_others_are_left_out_where_the_parent_does_not_mind(run, pool, method):
    poison = frames(bad(2, seed=9), "poison")
    made = run(method, pooled=[*pool, *poison], rules={"p_min": 0.0, "outliers_max": 0.5})
    assert {f.frame_id for f in poison} <= made.left_out.keys()
    assert made.left_out["poison-0"] == "it is unlike the other frames"
    assert not {f.frame_id for f in poison} & set(made.used)


def test_a_pool_full_of_defects_is_refused_by_what_is_missed(run, parents):
    poison = frames(bad(20, seed=9), "poison")
    made = run(pooled=poison, rules=OPEN)
    assert {"lost defects", "defects"} <= failed(made)
    assert made.candidate is not None, "it is there to be looked at"
    caught = made.candidate.inspect(frames(bad(8, seed=4), "d")).verdicts
    assert any(verdict.decision == "pass" for verdict in caught), "it would have learnt the defect"


def test_a_pool_full_of_defects_is_refused_without_golden_defects_as_well(run, golden):
    poison = frames(bad(20, seed=9), "poison")
    for rules in (OPEN | {"distance_max": 1.0}, OPEN | {"p_min": 0.1, "outliers_max": 0.2}):
        assert not run(pooled=poison, golden=Golden(goods=golden.goods), rules=rules).review.passed


def test_what_a_person_approved_last_is_the_measure_of_many_small_losses(run, parents, golden):
    poisoned = run(pooled=frames(bad(20, seed=9), "poison"), rules=OPEN).candidate
    made = run(parent=poisoned, anchor=parents("patchcore"), rules=OPEN)
    assert made.review.finding("lost since approval").outcome == "failed"
    assert made.review.finding("lost defects").outcome != "failed", "beside its parent nothing is lost"


def test_golden_pictures_in_the_pool_are_not_learnt(run, pool, golden):
    copies = [Frame(frame_id=f"copy-{i}", image=f.image) for i, f in enumerate([golden.goods[0], golden.defects[0]])]
    made = run(pooled=[*pool, *copies])
    assert {made.left_out[frame.frame_id] for frame in copies} == {"it is in the golden set"}


def test_no_more_frames_are_taken_than_asked_for(run):
    made = run(rules={"frames_max": 12, "p_min": 0.0, "folds": 0})
    assert len(made.used) == 12
    assert sum(why.startswith("not drawn") for why in made.left_out.values()) == 8


def test_unreadable_frames_are_told_and_serve_nothing(run, pool):
    made = run(pooled=[Frame(frame_id="broken", image=b"no picture"), *pool])
    assert made.unreadable == ("broken",)
    assert "broken" not in made.used


@pytest.mark.parametrize("method", ["patchcore", "padim", "spade"])
@pytest.mark.parametrize("share", [0.1, 0.25])
def test_new_frames_have_no_more_than_their_share(run, method, share, golden, fitted):
    learnt = Golden(goods=(*golden.goods, *fitted[:30]), defects=golden.defects, learnt=digests(fitted))
    made = run(method, golden=learnt, rules={"new_share_max": share})
    assert 0 < made.review.finding("new share").seen <= share


def test_a_fit_anew_and_its_calibration_share_no_picture(run, golden):
    made = run("spade")
    assert made.fitted_on
    assert not set(made.fitted_on) & set(made.calibrated_on)
    assert set(made.fitted_on) | set(made.calibrated_on) == {frame.frame_id for frame in golden.goods}


def test_halves_of_a_golden_set_are_the_same_ones_at_every_refit(golden):
    learnt, held_out = split(golden, anew=True)
    again = Golden(goods=golden.goods[::-1], learnt=digests(learnt))
    assert {f.frame_id for f in split(again, anew=True)[1]} == {f.frame_id for f in held_out}


def test_a_picture_that_is_there_twice_counts_once(golden):
    copy = Frame(frame_id="copy", image=golden.goods[0].image)
    _, held_out = split(Golden(goods=[*golden.goods, copy]), anew=False)
    assert [f.frame_id for f in held_out] == [f.frame_id for f in golden.goods]


def test_lots_do_not_depend_on_what_else_is_drawn_from(pool):
    drawn, left_out = draw(pool, Golden(), 5, 0)
    assert len(drawn) == 5
    assert len(left_out) == 15
    assert draw(pool, Golden(), 5, 0)[0] == drawn
    assert draw(pool, Golden(), 5, 1)[0] != drawn


def test_a_rate_that_is_none_is_refused(run):
    with pytest.raises(ConfigError, match="may be rejected"):
        run(rate=0.7)


@pytest.mark.parametrize("settings", [{}, {"locally_aware": True, "shrinkage": 0.3}], ids=["paper", "shrunk"])
def test_padim_goes_on_exactly(backbone, settings):
    first, second = good(12, seed=1), good(8, seed=2)
    options = methods.make_config("padim", {"dim": 40, **settings})
    parent = methods.fit("padim", Images(first), options, backbone=backbone, seed=0)
    grown = methods.grow("padim", parent, Images(second), new_share_max=1.0, seed=0)
    at_once = methods.fit("padim", Images(torch.cat([first, second])), options, backbone=backbone, seed=0)
    assert grown.taken == tuple(range(8))
    assert grown.new_share == pytest.approx(8 / 20)
    test = good(4, seed=3)
    scores = [d.score(d.embed(test)).image for d in (grown.detector, at_once)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)
    assert grown.detector.save().meta["images"] == 20


def test_padim_keeps_the_axes_of_its_first_fit(backbone):
    options = methods.make_config("padim", {"dim": 20, "embedding": "principal", "shrinkage": 0.2})
    parent = methods.fit("padim", Images(good(12, seed=1)), options, backbone=backbone, seed=0)
    grown = methods.grow("padim", parent, Images(good(8, seed=2)), new_share_max=1.0, seed=0).detector
    before, after = parent.save().tensors, grown.save().tensors
    assert torch.equal(before["embedding"], after["embedding"])
    assert not torch.equal(before["means"], after["means"])
    assert bool(grown.score(grown.embed(good(4, seed=3))).image.isfinite().all())


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 0.9])
def test_sums_come_back_from_their_gaussians(shrinkage):
    values = torch.randn(30, 5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 2
    sums = RunningSums(values.mean(dim=0))
    sums.add(values)
    means, factors = sums.gaussians(0.01, shrinkage)
    again = RunningSums.of(means, factors, 30, 0.01, shrinkage)
    torch.testing.assert_close(
        again.products / 29,
        (sums.products - sums.total.unsqueeze(2) * sums.total.unsqueeze(1) / 30) / 29,
        rtol=1e-3,
        atol=1e-3,
    )
    again = again.gaussians(0.01, shrinkage)
    torch.testing.assert_close(again[0], means)
    torch.testing.assert_close(again[1], factors, rtol=1e-4, atol=1e-4)


def test_an_older_padim_that_does_not_count_its_pictures_is_fitted_anew(parents, backbone):
    saved = parents("padim").detector.save()
    meta = {name: value for name, value in saved.meta.items() if name != "images"}
    older = methods.load(type(saved)(method="padim", tensors=saved.tensors, meta=meta), backbone=backbone)
    assert not methods.can_grow("padim", older)
    with pytest.raises(ConfigError, match="fitted anew"):
        methods.grow("padim", older, Images(good(3)), new_share_max=1.0, seed=0)


def test_a_bank_grows_by_the_coreset_of_old_and_new(parents):
    parent = parents("patchcore").detector
    new = Images(good(6, seed=5))
    rows = parent.embed(new.pixels).maps["patch"].permute(0, 2, 3, 1).reshape(-1, parent.bank.shape[1])
    grown = methods.grow("patchcore", parent, new, new_share_max=1.0, seed=0)
    both = torch.cat([parent.bank, rows])
    torch.testing.assert_close(grown.detector.bank, both[select(both, len(parent.bank), seed=0)])


def test_a_coreset_goes_on_with_what_its_centres_do_not_cover():
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    features = torch.tensor([[0.1, 0.0], [1.0, 0.1], [5.0, 0.0], [5.0, 0.2], [0.0, -9.0]])
    assert extend(centres, features, 2, seed=0).tolist() == [4, 3]
    assert sorted(extend(centres, features, 5, seed=0).tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(FitError, match="6 rows cannot be taken from 5"):
        extend(centres, features, 6, seed=0)


def test_a_schedule_is_cron_in_local_time():
    berlin = ZoneInfo("Europe/Berlin")
    at = datetime(2026, 3, 28, 12, tzinfo=berlin)
    assert next_run("0 3 * * *", at) == datetime(2026, 3, 29, 3, tzinfo=berlin)
    assert next_run("*/20 6-22 * * mon-fri", at) == datetime(2026, 3, 30, 6, tzinfo=berlin)


@pytest.mark.parametrize("schedule", ["nightly", "0 25 * * *", "* * *", "0 0 30 2 *"])
def test_a_schedule_that_is_none_is_told_with_the_settings(schedule):
    (problem,) = Refit(schedule=schedule).contradictions()
    assert "every night at three" in problem
