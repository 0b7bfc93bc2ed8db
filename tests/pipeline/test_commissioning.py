"""From good pictures to a model with a threshold of its own."""

import numpy as np
import pytest
import torch

from pipeline.backbone import resolve
from pipeline.commissioning import commission, score_all
from pipeline.data import Frame, Images
from pipeline.decode import Limits, decode
from pipeline.errors import FitError
from pipeline.methods import make_config
from pipeline.synthetic import draw, encode
from pipeline.view import View

VIEW = View(size=(64, 64))
WHOLE_BANK = make_config("patchcore", {"coreset": 1.0, "reweight": False})


@pytest.fixture(scope="module")
def backbone():
    return resolve("resnet18", ("layer2", "layer3"), weights=None, random_weights=True, factories=())


@pytest.fixture(scope="module")
def goods():
    return [
        Frame(frame_id=f"g{k}", image=encode(draw("gear", seed=k, size=(96, 96)).image, format="PNG"))
        for k in range(20)
    ]


@pytest.fixture
def fit(backbone):
    def fit_these(goods, **options):
        options = {"config": WHOLE_BANK, "rate": 0.1} | options
        return commission(goods, method="patchcore", backbone=backbone, view=VIEW, limits=Limits(), **options)

    return fit_these


def seen_by_the_bank(made, goods):
    """With every patch in the bank, a picture it was fitted on is its own nearest neighbour: distance 0."""
    scores = np.array([v.score for v in made.inspector.inspect(goods).verdicts])
    return scores < 1e-2 * scores.max(), scores


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_and_calibration_share_no_frame_and_leave_none_out(fit, goods, seed):
    made = fit(goods, seed=seed)
    assert made.frames == {"fit": 14, "tune": 0, "calibrate": 6}
    fitted, scores = seen_by_the_bank(made, goods)
    assert fitted.sum() == 14
    assert np.sort(scores[~fitted]) == pytest.approx(made.inspector.threshold.goods, rel=1e-4)


def test_the_seed_decides_the_split(fit, goods):
    first, again, other = (seen_by_the_bank(fit(goods, seed=seed), goods)[0] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_a_seed_gives_the_same_model(fit, goods):
    config = make_config("patchcore", {"coreset": 0.1})
    one, two = (fit(goods, config=config, seed=3).inspector.save() for _ in range(2))
    assert one.meta == two.meta
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize(("n", "share", "calibrate"), [(10, 0.3, 5), (10, 0.9, 5), (20, 0.01, 5), (20, 0.99, 15)])
def test_both_sides_of_the_split_have_at_least_5(fit, goods, n, share, calibrate):
    assert fit(goods[:n], calibrate_share=share).frames == {"fit": n - calibrate, "tune": 0, "calibrate": calibrate}


@pytest.mark.parametrize("n", [0, 1, 9])
def test_too_few_goods_say_how_many_are_needed(fit, goods, n):
    with pytest.raises(FitError, match=rf"{n} readable good frames of {n}; at least 10"):
        fit(goods[:n])


def test_unreadable_goods_are_told_and_serve_no_purpose(fit, goods):
    made = fit([Frame(frame_id="bad-1", image=b""), *goods, Frame(frame_id="bad-2", image=goods[0].image[:99])])
    assert made.unreadable == ("bad-1", "bad-2")
    assert sum(made.frames.values()) == 20
    assert made.fit_s > 0


def test_too_few_readable_goods_name_what_is_wrong_with_the_first(fit, goods):
    with pytest.raises(FitError, match=r"9 readable good frames of 10; .*first unreadable: the frame is empty"):
        fit([*goods[:9], Frame(frame_id="bad", image=b"")])


def test_progress_comes_to_the_end_of_every_stage(fit, goods):
    last, total = {}, {}

    def progress(stage, done, of):
        assert last.get(stage, 0) <= done <= of
        last[stage], total[stage] = done, of

    fit(goods, progress=progress)
    assert last == total
    assert {"decode", "features", "calibrate"} <= last.keys()


def test_scores_in_batches_are_the_scores_at_once(fit, goods):
    detector = fit(goods[:12]).inspector.detector
    images = decode(goods, VIEW, Limits()).images.pixels
    at_once = detector.score(detector.embed(images))
    in_batches = score_all(detector, Images(images))
    torch.testing.assert_close(in_batches.image, at_once.image, rtol=1e-4, atol=1e-4)
    assert in_batches.map.shape == at_once.map.shape
