"""A method is chosen by what it finds of defects that are planted in good pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import choosing
from pipeline.backbone import resolve
from pipeline.choice import FEW, Candidate, MethodChoice, Tried, read
from pipeline.choosing import best, candidates, choose_method, config_of
from pipeline.commissioning import commission
from pipeline.data import Frame, Images
from pipeline.decode import Limits, decode
from pipeline.errors import FitError
from pipeline.planted import VISIBLE, planted
from pipeline.synthetic import draw, encode
from pipeline.view import View

VIEW = View(size=(96, 96))
ONE, OTHER = Candidate(method="patchcore"), Candidate(method="padim", settings={"dim": 7})


@pytest.fixture(scope="module")
def frames():
    return [
        Frame(frame_id=f"g{k}", image=encode(draw("gear", seed=k, size=(96, 96)).image, format="PNG"))
        for k in range(30)
    ]


@pytest.fixture(scope="module")
def goods(frames):
    return decode(frames, VIEW, Limits()).images


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


def changed(before, after):
    """(B, H, W): where pictures differ."""
    return (before != after).any(dim=1)


def test_each_picture_gets_one_piece_of_itself_and_keeps_the_rest(goods):
    before = goods.pixels.clone()
    found = changed(before, planted(goods.pixels, seed=3))
    assert torch.equal(goods.pixels, before)
    for each in found:
        rows, columns = each.nonzero().T
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert 0 < height * width <= 0.04 * 96 * 96


def test_the_seed_decides_what_is_planted(goods):
    first, again, other = (planted(goods.pixels, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_defect_can_be_seen_where_most_of_a_picture_is_black():
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    disc = ((rows - 48) ** 2 + (columns - 48) ** 2 < 20**2) * (100 + rows)
    pixels = disc.to(torch.uint8).expand(40, 3, 96, 96)
    apart = (planted(pixels, seed=0).float() - pixels).abs().mean(dim=1)
    assert (apart.flatten(1).sum(dim=1) / (apart > 0).flatten(1).sum(dim=1)).min() >= VISIBLE


def test_a_picture_of_one_colour_is_answered():
    assert planted(torch.full((2, 3, 64, 48), 7, dtype=torch.uint8), seed=0).shape == (2, 3, 64, 48)


def test_defects_come_from_the_region_of_interest_and_change_nothing_else(goods):
    inside = torch.zeros(96, 96, dtype=torch.bool)
    inside[40:80, 30:70] = True
    painted = torch.where(inside, goods.pixels, 118)
    after = planted(painted, inside=inside, seed=0)
    assert not changed(painted, after)[:, ~inside].any()
    assert changed(painted, after).flatten(1).any(dim=1).all()
    # Paint that is put elsewhere would be found as such: no spot of one colour may come into a picture of noise.
    noise = torch.where(inside, torch.randint(0, 60, (30, 3, 96, 96), dtype=torch.uint8), 118)
    assert planted(noise, inside=inside, seed=0)[:, :, inside].max() < 80


def test_tiles_get_smaller_defects(goods):
    def area(finer):
        return changed(goods.pixels, planted(goods.pixels, finer=finer, seed=0)).sum()

    assert area(3) < 0.3 * area(1)


def scores(good, *bad):
    return np.array([good, *bad], dtype=np.float64)


def test_the_default_is_taken_where_nothing_leads_it():
    draws = np.random.default_rng(0)
    noise = draws.normal(size=(2, 4, 50)) + np.array([0, 1, 1, 1])[:, None]
    chosen = best([ONE, OTHER], noise)
    assert chosen.taken is ONE
    assert [each.candidate for each in chosen.tried] == [ONE, OTHER]
    assert 0 < chosen.tried[1].lead_error < 0.1
    assert best([ONE, OTHER], [noise[0], noise[0]]).taken is ONE


def test_what_finds_more_than_chance_explains_is_taken():
    draws = np.random.default_rng(0)
    noise = draws.normal(size=(2, 4, 50))
    noise[0, 1:] += 1
    noise[1, 1:] += 2
    chosen = best([ONE, OTHER], noise)
    assert chosen.taken is OTHER
    assert chosen.tried[1].lead > 2 * chosen.tried[1].lead_error
    assert "taken      padim dim=7: AUROC 0.895 of planted defects, lead +0.158 (must be above 0.092)" in str(chosen)
    assert [each["taken"] for each in chosen.body()] == [False, True]


def test_its_auroc_counts_pairs_and_half_of_ties():
    chosen = best([ONE], [scores([0, 1, 2], [1, 3, 3])])
    # 1 beats 0 and ties with 1, both 3s beat all: 1.5 + 3 + 3 of 9 pairs.
    assert chosen.tried[0].auroc == pytest.approx(7.5 / 9)
    assert (chosen.tried[0].lead, chosen.tried[0].lead_error) == (0, 0)


def test_the_standard_error_is_that_of_pictures_drawn_anew():
    draws = np.random.default_rng(0)

    def drawn():
        # What is planted in a picture goes with it, and both candidates see the same pictures.
        shared = draws.normal(size=40)
        return [shared + 0.5 * draws.normal(size=(4, 40)) + np.array([0, 1, 1, 1])[:, None] * each for each in (1, 1.2)]

    tried = [best([ONE, OTHER], drawn()).tried[1] for _ in range(400)]
    assert np.std([each.lead for each in tried]) == pytest.approx(np.mean([each.lead_error for each in tried]), rel=0.2)


def test_tiles_leave_out_what_keeps_statistics_by_position():
    assert [each.method for each in candidates(VIEW)] == ["patchcore", "patchcore", "padim"]
    assert {each.method for each in candidates(View(size=(96, 96), tiles=(2,)))} == {"patchcore"}


def test_a_choice_is_that_of_its_pictures_and_its_seed(goods, backbone):
    first, again = (choose_method(goods, backbone=backbone, view=VIEW, seed=1) for _ in range(2))
    assert first == again
    assert [each.candidate for each in first.tried] == candidates(VIEW)
    assert all(each.auroc > 0.6 for each in first.tried), "what is planted can be seen"


def test_a_choice_is_made_where_a_region_tiles_and_turns_are_asked_for(frames, backbone):
    mask = np.zeros((96, 96), dtype=np.uint8)
    mask[10:90, 10:90] = 255
    for view, rotations in ((VIEW.with_roi(Image.fromarray(mask)), 2), (View(size=(64, 64), tiles=(2,)), 1)):
        images = decode(frames, view, Limits()).images
        chosen = choose_method(images, backbone=backbone, view=view, rotations=rotations)
        assert [each.candidate for each in chosen.tried] == candidates(view)
        assert all(each.auroc > 0.5 for each in chosen.tried)


def test_of_many_pictures_some_choose(goods, backbone, monkeypatch):
    monkeypatch.setattr(choosing, "MOST", 24)
    seen = []
    best = choosing.best
    monkeypatch.setattr(choosing, "best", lambda tried, scores: seen.append(scores) or best(tried, scores))
    choose_method(goods, backbone=backbone, view=VIEW)
    assert {each.shape for each in seen[0]} == {(4, 7)}


def test_what_cannot_be_fitted_to_so_few_is_no_candidate(goods, backbone, monkeypatch):
    unfit = Candidate(method="patchcore", settings={"coreset": 1e-9})
    monkeypatch.setattr(choosing, "candidates", lambda _: [unfit, ONE])
    assert [each.candidate for each in choose_method(goods, backbone=backbone, view=VIEW).tried] == [ONE]
    monkeypatch.setattr(choosing, "candidates", lambda _: [unfit])
    with pytest.raises(FitError, match="give more"):
        choose_method(goods, backbone=backbone, view=VIEW)


def test_too_few_pictures_choose_nothing(goods, backbone):
    with pytest.raises(FitError, match="20 are needed, and for a model 28 in all"):
        choose_method(Images(goods.pixels[:19]), backbone=backbone, view=VIEW)


def test_pictures_that_calibrate_have_no_say(frames, backbone):
    asked = []

    def choose_other(images, settled):
        asked.append(images)
        assert settled.spec == backbone.spec
        return OTHER.method, config_of(OTHER)

    made = commission(
        frames,
        method="patchcore",
        config=config_of(ONE),
        backbone=backbone,
        view=VIEW,
        limits=Limits(),
        rate=0.1,
        choose=choose_other,
    )
    assert (made.method, made.config) == ("padim", config_of(OTHER))
    assert made.inspector.save().method == "padim"
    kept = decode([f for f in frames if f.frame_id in made.calibrated_on], VIEW, Limits()).images.pixels
    (seen,) = asked
    assert len(seen) == made.frames["fit"] == 30 - len(kept)
    assert not any(torch.equal(one, other) for one in seen.pixels for other in kept)


def test_a_choice_of_which_none_is_good_is_doubted():
    def of(*aurocs):
        tried = tuple(
            Tried(candidate=each, auroc=auroc, lead=0.0, lead_error=0.1)
            for each, auroc in zip([ONE, OTHER], aurocs, strict=True)
        )
        return MethodChoice(taken=OTHER, tried=tried)

    assert of(0.99, FEW).doubt is None
    assert "AUROC 0.61, where chance is 0.5" in of(0.99, 0.612).doubt
    assert "AUROC 0.55" in of(0.5, 0.55).doubt


def test_a_choice_is_read_as_it_was_kept():
    better, worse = np.tile([[0.1], [0.9]], 8), np.tile([[0.5], [0.4]], 8)
    choice = best([ONE, OTHER], [worse, better])
    again = read(choice.body())
    assert (str(again), again.taken) == (str(choice), OTHER)
    assert [read(no) for no in (None, [], {}, [{"method": 1}], [choice.body()[0]])] == [None] * 5
