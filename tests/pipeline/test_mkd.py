"""MKD's numbers against slow and obvious versions."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import learned, maps, methods, training
from pipeline.backbone import resolve
from pipeline.cloner import Cloner, distances, place_distances
from pipeline.data import Images
from pipeline.errors import ConfigError
from pipeline.methods import mkd
from tests.conformance.pictures import BOX, bad, config, good


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


@pytest.fixture(scope="module")
def detector(backbone):
    return methods.fit("mkd", Images(good(10)), config("mkd"), backbone=backbone, seed=0)


def test_for_vgg16s_pools_the_cloner_is_the_papers():
    cloner = Cloner([128, 256, 512, 512], [2, 3, 4, 5], [False] * 4)
    kinds = [
        "M" if isinstance(m, nn.MaxPool2d) else m.out_channels
        for m in cloner.modules()
        if isinstance(m, nn.MaxPool2d | nn.Conv2d)
    ]
    assert kinds == [16, 16, "M", 16, 128, "M", 16, 16, 256, "M", 16, 16, 512, "M", 16, 16, 512, "M"]
    for stage in cloner.stages:
        names = [type(m).__name__ for m in stage]
        assert names[-3:] == ["Conv2d", "ReLU", "MaxPool2d"], "no norm before a pool"
        assert names[:-3] == ["Conv2d", "BatchNorm2d", "ReLU"] * (len(names[:-3]) // 3)
    assert all(m.bias is None for m in cloner.modules() if isinstance(m, nn.Conv2d))
    sizes = [tuple(m.shape[1:]) for m in cloner(torch.zeros(1, 3, 128, 128))]
    assert sizes == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4)]


def test_losses_are_the_papers():
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(3, 4, 5, 5, generator=g), torch.randn(3, 6, 2, 2, generator=g)]
    wanted = [torch.randn(3, 4, 5, 5, generator=g), torch.randn(3, 6, 2, 2, generator=g)]
    for b, value in enumerate(distances(made, wanted, 0.5)):
        expected = 0.0
        for mine, theirs in zip(made, wanted, strict=True):
            a, c = mine[b].numpy().ravel(), theirs[b].numpy().ravel()
            expected += 1 - a @ c / np.linalg.norm(a) / np.linalg.norm(c) + 0.5 * np.mean((a - c) ** 2)
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_place_is_that_of_a_map_of_one_place():
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 4, 4, 4, generator=g), torch.randn(2, 6, 2, 2, generator=g)]
    wanted = [torch.randn(2, 4, 4, 4, generator=g), torch.randn(2, 6, 2, 2, generator=g)]
    places = place_distances(made[:1], wanted[:1], 0.5, 4)
    for y in range(4):
        for x in range(4):
            one = [[each[0][:, :, y : y + 1, x : x + 1]] for each in (made, wanted)]
            torch.testing.assert_close(places[:, y, x], distances(*one, 0.5))
    second = place_distances(made[1:], wanted[1:], 0.5, 4)
    torch.testing.assert_close(place_distances(made, wanted, 0.5, 4), places + second)


def test_the_map_of_distances_peaks_where_the_defect_is(backbone):
    wanted = dataclasses.replace(config("mkd"), map="distance")
    detector = methods.fit("mkd", Images(good(10)), wanted, backbone=backbone, seed=0)
    scored = detector.score(detector.embed(bad(3)))
    inside = scored.map[:, BOX[0], BOX[1]].mean(dim=(1, 2))
    assert (inside > 2 * scored.map.mean(dim=(1, 2))).all()
    sharp = methods.load(detector.save(), backbone=backbone)
    sharp.config = dataclasses.replace(wanted, sigma=0)
    assert (sharp.score(sharp.embed(bad(3))).map.amax(dim=(1, 2)) > 1.01 * scored.map.amax(dim=(1, 2))).all(), (
        "smoothed"
    )
    by_gradient = methods.fit("mkd", Images(good(10)), config("mkd"), backbone=backbone, seed=0)
    torch.testing.assert_close(scored.image, by_gradient.score(by_gradient.embed(bad(3))).image)


@pytest.fixture
def trainings(monkeypatch):
    """What each fit asked of `train`, which runs."""
    asked = []

    def spy(*positional, **named):
        asked.append(named)
        return training.train(*positional, **named)

    monkeypatch.setattr(mkd, "train", spy)
    return asked


def test_with_patience_the_training_ends_where_held_out_goods_gain_no_more(backbone, trainings):
    images, told = Images(good(12)), []
    wanted = dataclasses.replace(config("mkd"), epochs=400, batch=4, rate=0.01, patience=2, held_out=0.25)
    detector = methods.fit(
        "mkd",
        images,
        wanted,
        backbone=backbone,
        seed=0,
        progress=lambda *said: told.append(said) if said[0] == "cloner" else None,
    )
    assert told[0] == ("cloner", 1, 1200)
    assert 3 * 2 < told[-1][1] == told[-1][2] < 1200, "what was asked for was a limit"
    held_out = trainings[0]["held_out"]
    assert (held_out.every, held_out.patience) == (3, 2), "looks at each epoch of the nine that it trains on"
    _, held = learned.split(images, 0.25, 0)
    scored = detector.score(detector.embed(images.pixels[held])).image
    assert held_out.loss() == pytest.approx(float(scored.mean()), rel=1e-4)


def test_nothing_is_learnt_from_what_is_held_out(backbone):
    images = Images(good(12))
    wanted = dataclasses.replace(config("mkd"), epochs=1, batch=4, patience=1, held_out=0.25)
    _, held = learned.split(images, 0.25, 0)
    others = images.pixels.clone()
    others[held] = 255 - others[held]
    one, other = (
        methods.fit("mkd", Images(pixels), wanted, backbone=backbone, seed=0).save().tensors
        for pixels in (images.pixels, others)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_patience_every_good_picture_is_trained_on(backbone, trainings):
    methods.fit("mkd", Images(good(4)), config("mkd"), backbone=backbone, seed=0)
    assert trainings[0]["held_out"] is None


@pytest.mark.parametrize("settings", [{"patience": -1}, {"held_out": 0}, {"held_out": 1}])
def test_a_patience_that_cannot_be_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        methods.make_config("mkd", settings)


def test_the_gradient_is_the_losses(detector):
    """Against finite differences at the pixels with the largest gradient."""
    features = detector.embed(bad(1))
    prepared = features.maps["prepared"].clone()

    def loss(x):
        source = [m / s for m, s in zip(detector._backbone.differentiable(x).values(), detector._scales, strict=True)]
        return distances(detector._cloner(x), source, 0.5)

    x = prepared.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    for place in gradient.abs().flatten().topk(3).indices:
        step = torch.zeros(prepared.numel())
        step[place] = 1e-2
        step = step.view_as(prepared)
        with torch.no_grad():
            measured = (loss(prepared + step) - loss(prepared - step)) / 2e-2
        assert float(measured) == pytest.approx(float(gradient.flatten()[place]), rel=0.1)


def test_scoring_works_in_inference_mode_too(detector):
    expected = detector.score(detector.embed(bad(2)))
    with torch.inference_mode():
        scored = detector.score(detector.embed(bad(2)))
    assert torch.equal(scored.map, expected.map)


def test_opening_is_a_minimum_then_a_maximum_over_a_cross():
    g = torch.Generator().manual_seed(1)
    image = torch.rand(1, 7, 9, generator=g)

    def over_cross(a, pick):
        out = a.clone()
        for i in range(7):
            for j in range(9):
                near = [(i, j), (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
                out[0, i, j] = pick(float(a[0, y, x]) for y, x in near if 0 <= y < 7 and 0 <= x < 9)
        return out

    assert torch.equal(maps.opened(image), over_cross(over_cross(image, min), max))


def test_layers_of_equal_stride_are_refused():
    backbone = resolve("resnet18", ("layer2.0", "layer2"), weights=None, random_weights=True, factories=())
    with pytest.raises(ConfigError, match="choose others with --layers"):
        methods.fit("mkd", Images(good(4)), config("mkd"), backbone=backbone, seed=0)


def test_a_differentiable_pass_gives_the_engines_features(backbone):
    pixels = good(2)
    for layer, expected in backbone(pixels).items():
        torch.testing.assert_close(
            backbone.differentiable(backbone.prepare(pixels))[layer], expected, rtol=1e-4, atol=1e-4
        )
