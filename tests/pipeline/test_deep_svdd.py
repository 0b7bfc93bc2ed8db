"""Deep SVDD's numbers against slow and obvious versions."""

import pytest
import torch
from torch import nn

from pipeline import methods, training
from pipeline.backbone import resolve
from pipeline.data import Images
from pipeline.errors import FitError
from pipeline.methods import deep_svdd
from pipeline.one_class import Encoder, centre_of, soft_boundary
from tests.conformance.pictures import bad, good


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


def fit(backbone, **settings):
    short = {"pretrain_epochs": 2, "epochs": 14, "batch": 8, "rate": 1e-3, **settings}
    return methods.fit(
        "deep_svdd", Images(good(16)), methods.make_config("deep_svdd", short), backbone=backbone, seed=0
    )


def test_rates_fall_after_250_and_50_epochs(backbone, monkeypatch):
    rates = {}

    def noted(module, loss, *, stage, rate, **settings):
        rates[stage] = rate
        training.train(module, loss, stage=stage, rate=rate, **{**settings, "steps": 1})

    monkeypatch.setattr(deep_svdd, "train", noted)
    fit(backbone, pretrain_epochs=350, epochs=150, rate=1e-4)
    for stage, drop, epochs in (("autoencoder", 250, 350), ("one class", 50, 150)):
        assert [rates[stage](epoch / epochs) for epoch in (0, drop - 1, drop)] == pytest.approx([1e-4, 1e-4, 1e-5])


def test_nothing_could_send_every_picture_to_the_centre():
    encoder = Encoder(32)
    assert all(m.bias is None for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(not m.affine and m.eps == 1e-4 for m in norms)
    assert tuple(encoder(torch.zeros(2, 3, 32, 32)).shape) == (2, 128)


def test_the_centre_stays_away_from_zero():
    centre = centre_of(torch.tensor([[0.5, 0.02, -0.02, -0.7, 0.0]] * 3))
    torch.testing.assert_close(centre, torch.tensor([0.5, 0.1, -0.1, -0.7, 0.1]))


def test_the_soft_boundary_is_the_papers():
    squares = [4.0, 1.0, 9.0, 0.25]
    expected = 1.5**2 + sum(max(0.0, s - 1.5**2) for s in squares) / len(squares) / 0.1
    assert float(soft_boundary(torch.tensor(squares), torch.tensor(1.5), 0.1)) == pytest.approx(expected)


def test_scores_are_distances_from_the_centre(backbone):
    detector = fit(backbone)
    features = detector.embed(bad(3))
    centre = detector.save().tensors["centre"]
    assert (centre.abs() >= 0.1 - 1e-7).all()
    expected = (features.maps["embedding"] - centre).square().sum(dim=1)
    scored = detector.score(features)
    torch.testing.assert_close(scored.image, expected)
    assert not scored.map.any()
    assert detector.save().meta["localises"] is False
    assert float(detector.save().tensors["radius"]) == 0


def test_a_soft_boundary_has_a_share_nu_of_the_goods_outside(backbone):
    detector = fit(backbone, objective="soft-boundary", nu=0.25)
    scores = detector.score(detector.embed(good(16))).image
    assert int((scores > 0).sum()) == 4
    assert float(detector.save().tensors["radius"]) > 0


def test_training_draws_the_goods_nearer(backbone):
    def spread(epochs):
        detector = fit(backbone, epochs=epochs)
        return float(detector.score(detector.embed(good(16))).image.mean())

    assert spread(30) < 0.7 * spread(1)


def test_even_pictures_are_refused(backbone):
    config = methods.make_config("deep_svdd", {"epochs": 1})
    with pytest.raises(FitError, match="one even tone"):
        methods.fit(
            "deep_svdd", Images(torch.full((4, 3, 64, 64), 90, dtype=torch.uint8)), config, backbone=backbone, seed=0
        )
