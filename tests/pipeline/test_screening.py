"""Good pictures unlike the others: each is scored by a model that learnt from the others alone."""

import numpy as np
import pytest
import torch

from pipeline import screening, tiling
from pipeline.backbone import resolve
from pipeline.commissioning import score_all
from pipeline.data import Frame, Images
from pipeline.decode import Limits, decode
from pipeline.errors import ConfigError, FitError
from pipeline.methods import make_config
from pipeline.screening import folds, outliers, screen
from pipeline.synthetic import draw, encode
from pipeline.view import View

VIEW = View(size=(96, 96))
WHOLE_BANK = make_config("patchcore", {"coreset": 1.0, "reweight": False})
SPOILT = "spoilt"


def frame(name, seed, *, defect=None):
    drawn = draw("gear", seed=seed, size=(96, 96), defect=defect)
    return Frame(frame_id=name, image=encode(drawn.image, format="PNG"))


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


@pytest.fixture(scope="module")
def goods():
    """Nineteen drawn gears, and at the eighth place one that lacks something."""
    made = [frame(f"g{k}", seed=k) for k in range(19)]
    return [*made[:7], frame(SPOILT, seed=100, defect="missing"), *made[7:]]


@pytest.fixture
def screened(backbone):
    def do(goods, **options):
        options = {"config": WHOLE_BANK, "most": 6, "view": VIEW} | options
        return screen(goods, method="patchcore", backbone=backbone, limits=Limits(), **options)

    return do


def test_a_defect_among_the_goods_stands_out(screened, goods):
    found = screened(goods)
    assert found.frame_ids[0] == SPOILT
    assert found.standing_out == 1 == outliers(torch.from_numpy(found.scores), screening.DEVIATIONS).sum()
    cleaned = screened([good for good in goods if good.frame_id != SPOILT])
    assert cleaned.standing_out == 0
    assert sorted(found.frame_ids) == sorted(good.frame_id for good in goods)
    assert (np.diff(found.scores) <= 0).all()


def test_scores_and_maps_are_those_of_a_model_that_never_saw_the_picture(screened, goods, backbone):
    found = screened(goods, count=4, seed=3)
    decoded = decode(goods, VIEW, Limits())
    pixels, place = decoded.images.pixels, {name: i for i, name in enumerate(decoded.frame_ids)}
    for held, others in folds(len(goods), 4, 3):
        detector = tiling.fit(
            "patchcore", Images(pixels[others]), WHOLE_BANK, tiles=(1,), size=VIEW.size, backbone=backbone, seed=3
        )
        alone = score_all(detector, Images(pixels[held]))
        for i, score, scores in zip(held.tolist(), alone.image, alone.map, strict=True):
            at = found.frame_ids.index(decoded.frame_ids[i])
            assert found.scores[at] == pytest.approx(float(score), rel=1e-5)
            if at < len(found.maps):
                assert found.maps[at] == pytest.approx(scores.numpy(), rel=1e-4)
    assert found.maps.shape == (6, 96, 96)
    for at in range(6):
        assert (found.pixels[at] == pixels[place[found.frame_ids[at]]].numpy()).all()


def test_a_seed_gives_the_same_order(screened, goods):
    one, two = screened(goods, seed=1), screened(goods, seed=1)
    assert one.frame_ids == two.frame_ids
    assert (one.scores == two.scores).all()
    assert (one.scores != screened(goods, seed=2).scores).any()


def test_who_is_there_twice_vouches_for_itself(screened, goods):
    """Why the help says so: with the whole bank, a copy in another fold is at distance 0."""
    copy = Frame(frame_id="copy", image=next(good.image for good in goods if good.frame_id == SPOILT))
    found = screened([*goods, copy], count=len(goods) + 1)
    assert {found.frame_ids[-1], found.frame_ids[-2]} == {SPOILT, "copy"}


@pytest.mark.parametrize("most", [1, 3, 7, 50])
def test_copies_that_score_alike_are_shown_in_their_order(screened, goods, most):
    twins = [Frame(frame_id=f"twin of {good.frame_id}", image=good.image) for good in goods]
    found = screened([*goods, *twins], config=make_config("patchcore", {"coreset": 0.2}), most=most)
    assert len(found.maps) == min(most, 2 * len(goods))
    alike = [(score, name) for score, name in zip(found.scores.tolist(), found.frame_ids, strict=True)]
    assert len({score for score, _ in alike}) < len(alike)
    places = {frame.frame_id: i for i, frame in enumerate([*goods, *twins])}
    assert alike == sorted(alike, key=lambda each: (-each[0], places[each[1]]))


def test_a_view_of_tiles_is_compared_within_its_folds(screened, goods):
    """Their scales differ from fit to fit: without that one fold's good parts lie above another's defect."""
    view = View(size=(64, 64), tiles=(2,))
    found = screened(goods, view=view, count=2, config=make_config("patchcore", {"coreset": 0.2}))
    assert found.frame_ids[0] == SPOILT
    for held, _ in folds(len(goods), 2, 0):
        names = {goods[i].frame_id for i in held.tolist()}
        scores = [score for score, name in zip(found.scores, found.frame_ids, strict=True) if name in names]
        assert sorted(scores)[(len(scores) - 1) // 2] == pytest.approx(0, abs=1e-6)
    with pytest.raises(FitError, match="a view of tiles needs 10 a fold"):
        screened(goods, view=view, count=3)


def test_a_picture_is_learnt_in_as_many_poses_as_asked(screened):
    """One that is turned by half a circle is like the others once these are learnt turned, too."""
    upright = [draw("cap", seed=k, size=(96, 96)).image for k in range(11)]
    images = [*upright, np.ascontiguousarray(draw("cap", seed=11, size=(96, 96)).image[::-1, ::-1])]
    goods = [Frame(frame_id=f"c{k}", image=encode(image, format="PNG")) for k, image in enumerate(images)]
    alone, turned = (screened(goods, rotations=count) for count in (1, 2))
    assert turned.scores[turned.frame_ids.index("c11")] < 0.95 * alone.scores[alone.frame_ids.index("c11")]


def test_what_cannot_be_read_is_named(screened, goods):
    found = screened([*goods, Frame(frame_id="torn", image=b"\xff\xd8\xff")])
    assert found.unreadable == ("torn",)
    assert "torn" not in found.frame_ids


def test_too_few_are_refused(screened, goods):
    with pytest.raises(FitError, match="9 readable good frames of 9; at least 10"):
        screened(goods[:9])
    with pytest.raises(ConfigError, match="at least 2"):
        screened(goods, count=1)


@pytest.mark.parametrize(("n", "count"), [(10, 2), (11, 5), (7, 7), (3, 9)])
def test_folds_hold_each_picture_out_once(n, count):
    made = list(folds(n, count, seed=0))
    assert len(made) == min(n, count)
    assert torch.cat([held for held, _ in made]).sort().values.tolist() == list(range(n))
    for held, others in made:
        assert others.sum() == n - len(held)
        assert not others[held].any()
    sizes = [len(held) for held, _ in made]
    assert max(sizes) - min(sizes) <= 1


def test_outliers_lie_above_in_robust_deviations():
    scores = torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 3.0, -9.0])
    assert outliers(scores, 4.0).tolist() == [False] * 6 + [True, False], "what is too near is no outlier"
    assert not outliers(torch.ones(5), 4.0).any()
    assert outliers(torch.tensor([1.0] * 9 + [2.0]), 4.0).tolist() == [False] * 9 + [True]
