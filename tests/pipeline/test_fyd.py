"""FYD's numbers against slow and obvious versions."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pipeline import alignment, methods
from pipeline.alignment import Localiser, after, apart, image_loss, undone, warp
from pipeline.backbone import resolve
from pipeline.data import Images
from pipeline.errors import FitError
from pipeline.methods import make_config
from tests.conformance.pictures import BOX, bad, good


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


def turned(angle, scale=1.0, shift=(0.0, 0.0)):
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[[cos, -sin, shift[0]], [sin, cos, shift[1]]]])


def test_without_alignment_it_is_padim(backbone):
    shared = {"dim": 40, "sigma": 2.0}
    padim = methods.fit("padim", Images(good(12)), make_config("padim", shared), backbone=backbone, seed=5)
    fyd = methods.fit(
        "fyd", Images(good(12)), make_config("fyd", {**shared, "align": "none"}), backbone=backbone, seed=5
    )
    one, other = (d.score(d.embed(bad(2))) for d in (padim, fyd))
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.map, other.map)


def test_image_loss_is_the_papers():
    pictures = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    expected = sum(
        (pictures[a] - pictures[b]).square().sum(dim=0).sqrt().mean() for a in range(4) for b in range(a + 1, 4)
    )
    torch.testing.assert_close(image_loss(pictures), expected, rtol=1e-5, atol=1e-6)


def test_feature_loss_is_the_papers():
    g = torch.Generator().manual_seed(0)
    p = torch.randn(3, 4, 2, 2, generator=g, requires_grad=True)
    z = torch.randn(3, 4, 2, 2, generator=g)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(
        -(cosine_similarity(p[a], z[b], dim=0) + cosine_similarity(p[b], z[a], dim=0)).mean() / 2 for a, b in pairs
    )
    torch.testing.assert_close(apart(p, z), expected / len(pairs))


def test_the_feature_loss_sends_no_gradient_to_what_is_encoded():
    fine = alignment.Fine(4)
    maps = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    weights = fine.encoder[0].weight

    def gradient(loss):
        return torch.autograd.grad(loss, weights)[0]

    codes = fine.encoder(maps)
    constant = codes.detach()
    stopped = gradient(apart(fine.predictor(codes), constant))
    codes = fine.encoder(maps)
    let_through = gradient(apart(fine.predictor(codes), codes))
    torch.testing.assert_close(gradient(fine(maps)), stopped)
    assert not torch.allclose(let_through, stopped, rtol=0.1)


def test_a_transformer_starts_as_the_identity_and_stays_within_bounds():
    net = Localiser(3).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), torch.eye(2, 3).repeat(2, 1, 1))
    torch.testing.assert_close(warp(x, net(x)), x, atol=1e-4, rtol=0)
    with torch.no_grad():
        net.tell.bias.fill_(1e6)
        (theta,) = net(x[:1])
    angle = math.atan2(float(theta[1, 0]), float(theta[0, 0]))
    assert angle == pytest.approx(math.radians(15), rel=1e-4)
    assert float(theta[:, :2].det().sqrt()) == pytest.approx(math.exp(0.15), rel=1e-4)
    assert theta[:, 2].tolist() == pytest.approx([0.2, 0.2], rel=1e-4)


def test_a_warp_that_all_pictures_share_is_none():
    net = Localiser(3)
    with torch.no_grad():
        net.tell.bias.fill_(3.0)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1, 1)
    torch.testing.assert_close(net(x), torch.eye(2, 3).repeat(4, 1, 1))
    alignment.settle(net, x)
    torch.testing.assert_close(net.eval()(x), torch.eye(2, 3).repeat(4, 1, 1), atol=1e-4, rtol=0)


def test_a_warp_undone_puts_a_spot_back():
    spot = torch.zeros(1, 1, 65, 65)
    spot[0, 0, 20:23, 40:43] = 1
    theta = turned(0.2, 1.1, (0.1, -0.15))
    moved = warp(spot, theta)
    back = warp(moved, undone(theta), padding="border")
    assert abs(divmod(int(moved.argmax()), 65)[0] - 21) > 1
    row, column = divmod(int(back.argmax()), 65)
    assert (abs(row - 21) <= 1, abs(column - 41) <= 1) == (True, True)


def test_a_warp_is_as_exact_where_others_are_rounded():
    picture = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    theta = turned(0.001, 1.0015)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = warp(picture.bfloat16(), theta)
    torch.testing.assert_close(rounded, warp(picture.bfloat16().float(), theta))


def test_two_warps_are_one():
    picture = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6), size=(64, 64), mode="bicubic")
    first, second = turned(0.1, 1.05, (0.05, 0.0)), turned(-0.05, 0.95, (0.0, 0.1))
    twice = warp(warp(picture, first), second)
    once = warp(picture, after(first, second))
    torch.testing.assert_close(twice[..., 12:52, 12:52], once[..., 12:52, 12:52], atol=0.02, rtol=0)


def test_the_image_stage_lays_shifted_pictures_over_one_another(backbone):
    """A bright square that stands elsewhere in each picture."""
    g = torch.Generator().manual_seed(1)
    pictures = torch.full((24, 3, 64, 64), 60, dtype=torch.uint8)
    for picture in pictures:
        x, y = (int(v) for v in torch.randint(18, 27, (2,), generator=g))
        picture[:, y : y + 20, x : x + 20] = 200
    config = make_config("fyd", {"align": "coarse", "epochs": 60, "batch": 12, "rate": 1e-3, "dim": 20})
    detector = methods.fit("fyd", Images(pictures), config, backbone=backbone, seed=0)
    small = alignment.small(pictures)
    with torch.no_grad():
        after_ = image_loss(warp(small, detector._nets["picture"](small)))
    assert after_ < 0.7 * image_loss(small)


def test_features_that_float16_cannot_hold_are_refused(backbone):
    class Huge:
        spec, device = backbone.spec, backbone.device

        def __call__(self, images):
            return {"layer": torch.full((len(images), 1, 4, 4), 1e6)}

    with pytest.raises(FitError, match="not finite in float16"):
        alignment.features_of(Images(good(2)), torch.nn.ModuleDict(), Huge(), lambda *_: None)


def test_pictures_that_cannot_be_laid_over_one_another_stay_where_they_are(backbone):
    """Each has a texture of its own: a warp would gain nothing, and resampling is not for nothing."""
    coarse = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 255
    images = Images(torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear").to(torch.uint8))
    settings = {"epochs": 6, "batch": 8, "dim": 20}
    warped, plain = (
        methods.fit("fyd", images, make_config("fyd", {"align": align, **settings}), backbone=backbone, seed=0)
        for align in ("coarse", "none")
    )
    small = alignment.small(images.pixels)
    assert torch.equal(warped._nets["picture"](small), torch.eye(2, 3).expand(16, 2, 3))
    asked = good(3)
    expected = plain.score(plain.embed(asked))
    scored = warped.score(warped.embed(asked))
    torch.testing.assert_close(scored.image, expected.image, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scored.map, expected.map, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("align", ["coarse", "fine", "both"])
def test_a_defect_stays_where_it_is(backbone, align):
    config = make_config("fyd", {"align": align, "epochs": 6, "batch": 6, "dim": 40, "rate": 1e-3})
    detector = methods.fit("fyd", Images(good(12)), config, backbone=backbone, seed=0)
    scored = detector.score(detector.embed(bad(2)))
    for each in scored.map:
        row, column = divmod(int(each.argmax()), 64)
        assert BOX[0].start - 8 <= row < BOX[0].stop + 8
        assert BOX[1].start - 8 <= column < BOX[1].stop + 8
