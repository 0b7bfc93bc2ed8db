"""EfficientAD's numbers against slow and obvious versions of the paper's equations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, pad

from pipeline import imitation, learned, methods, pdn, training
from pipeline.backbone import resolve
from pipeline.commissioning import rotated
from pipeline.data import Features, Images
from pipeline.errors import ArtifactError, ConfigError, FitError
from pipeline.imitation import Autoencoder
from pipeline.methods import efficientad
from pipeline.methods.efficientad import differences, normalise
from tests.conformance.pictures import TINY, good
from tests.pipeline.test_learned import assert_turns_are_together
from tests.pipeline.test_photographs import drawn_photographs


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


@pytest.fixture(scope="module")
def detector(backbone):
    config = methods.make_config("efficientad", TINY["efficientad"], quick=True)
    return methods.fit("efficientad", Images(good(6)), config, backbone=backbone, seed=0)


@pytest.mark.parametrize("kind", ["s", "m"])
@torch.inference_mode()
def test_a_pdn_describes_patches_of_33_px_4_px_apart(kind):
    net = pdn.pdn(kind, 5)
    x = torch.randn(1, 3, 64, 80)
    whole = net(x)
    assert tuple(whole.shape[2:]) == pdn.grid_of((64, 80))
    alone = net(x[:, :, 8 : 8 + 33, 12 : 12 + 33])
    torch.testing.assert_close(alone[0, :, 0, 0], whole[0, :, 2, 3], atol=1e-4, rtol=1e-4)


def test_sizes_at_256_px_are_the_papers():
    assert pdn.grid_of((256, 256)) == (56, 56)
    assert [height for height, _ in imitation.decoder_sizes((256, 256))] == [3, 8, 15, 32, 63, 127]
    with torch.device("meta"):
        for kind in ("s", "m"):
            assert tuple(pdn.pdn(kind, 384)(torch.zeros(2, 3, 256, 256)).shape) == (2, 384, 56, 56)
        net = Autoencoder((256, 256), 384)
        assert tuple(net.encoder(torch.zeros(1, 3, 256, 256)).shape) == (1, 64, 8, 8)
        assert tuple(net.code.kernel_size) == (8, 8)
        assert tuple(net(torch.zeros(2, 3, 256, 256)).shape) == (2, 384, 56, 56)


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (100, 150), (225, 67)])
def test_networks_fit_each_other_at_any_size(size):
    with torch.device("meta"):
        x = torch.zeros(1, 3, *size)
        seen = Autoencoder(size, 7)(x).shape
        assert seen == pdn.pdn("s", 7)(x).shape
    assert tuple(seen[2:]) == pdn.grid_of(size)


@pytest.mark.parametrize("count", [10, 999, 1000, 1001, 30_000])
def test_the_hard_loss_is_the_mean_at_or_above_the_quantile(count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    for quantile in (0.0, 0.5, 0.999):
        threshold = torch.quantile(values, quantile)
        torch.testing.assert_close(imitation.hard_loss(values, quantile), values[values >= threshold].mean())


def test_the_losses_are_the_papers_on_whole_pictures(backbone):
    with training.seeded(0):
        nets = imitation.Nets("s", (64, 64), 6)
    learned.freeze(nets)  # no dropout, so that the loss is a number that can be told again
    pictures = good(3)
    natural = pdn.NaturalPictures([], 0)
    how = imitation.Imitation(
        images=pictures,
        natural=natural,
        crop_px=0,
        hard=0.9,
        steps=1,
        rate=training.constant(1e-4),
        weight_decay=0,
        seed=0,
    )
    told = imitation.imitation_loss(nets, how, 5, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    image = pictures[int(torch.randint(3, (1,), generator=generator))][None]
    device = torch.device("cpu")
    x, changed, p = (
        learned.normalised(each, device)
        for each in (image, imitation.jitter(image, generator), natural.batch([5], (64, 64)))
    )
    squares = (nets.teacher(x) - nets.student(x)[:, :6]) ** 2
    expected = squares[squares >= torch.quantile(squares, 0.9)].mean() + (nets.student(p)[:, :6] ** 2).mean()
    rebuilt = nets.autoencoder(changed)
    expected += ((nets.teacher(changed) - rebuilt) ** 2).mean() + ((rebuilt - nets.student(changed)[:, 6:]) ** 2).mean()
    torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_crop_has_the_cells_of_the_whole():
    net = pdn.pdn("s", 4)
    x = torch.randn(1, 3, 96, 72)
    rows, columns, cells = imitation._window(x.shape[2:], 48, torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x[..., rows, columns]), net(x)[(..., *cells)], atol=1e-4, rtol=1e-4)


def test_jitter_changes_one_thing_by_a_fifth_at_most():
    image = good(1).float()
    means = set()
    for seed in range(30):
        changed = imitation.jitter(image, torch.Generator().manual_seed(seed))
        assert tuple(changed.shape) == (1, 3, 64, 64)
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 255
        assert 0.79 < float(changed.mean() / image.mean()) < 1.21
        means.add(round(float(changed.mean()), 3))
    assert len(means) > 5


def test_quantiles_are_mapped_to_0_and_a_tenth():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 2, 20, 20, generator=generator) * torch.tensor([3.0, 50.0]).view(1, 2, 1, 1)
    rows = maps.transpose(0, 1).flatten(1)
    quantiles = torch.stack([torch.quantile(rows, q, dim=1) for q in (0.9, 0.995)], dim=1)
    after = normalise(maps, quantiles).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.quantile(after, 0.9, dim=1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.quantile(after, 0.995, dim=1), torch.full((2,), 0.1), atol=1e-5, rtol=0)


def test_quantiles_are_of_the_held_out_goods(detector):
    pictures = good(6)
    _, held = learned.split(Images(pictures), detector.config.held_out, 0)
    maps = detector.embed(pictures[held]).maps
    values = differences(maps["teacher"], maps["student"], maps["autoencoder"]).transpose(0, 1).flatten(1).numpy()
    expected = np.quantile(values, [0.9, 0.995], axis=1).T
    np.testing.assert_allclose(detector.quantiles.numpy(), expected, rtol=1e-3)


def test_scores_are_the_papers(detector):
    generator = torch.Generator().manual_seed(0)
    teacher, autoencoder = torch.randn(2, 3, 4, 8, 8, generator=generator)
    student = torch.randn(3, 8, 8, 8, generator=generator)
    maps = {"teacher": teacher, "student": student, "autoencoder": autoencoder}
    scored = detector.score(Features(maps=maps, image_size=(64, 64)))
    scaled = []
    for each, (low, high) in zip(
        [((teacher - student[:, :4]) ** 2).mean(1), ((autoencoder - student[:, 4:]) ** 2).mean(1)],
        detector.quantiles.tolist(),
        strict=True,
    ):
        scaled.append(0.1 * (each - low) / (high - low))
    joined = pad((scaled[0] + scaled[1]) / 2, (4, 4, 4, 4))
    expected = interpolate(joined[:, None], size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(scored.map, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scored.image, expected.amax(dim=(1, 2)), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_teacher_is_normalised_over_the_good_pictures():
    net = pdn.pdn("s", 6)
    pictures = good(9)
    pdn.normalise_outputs(net, pictures, lambda *_: None)
    seen = net(learned.normalised(pictures, torch.device("cpu"))).transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen.mean(dim=1), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(dim=1), torch.ones(6), atol=1e-2, rtol=0)


def test_all_turns_of_a_held_out_picture_are_held_out(backbone, monkeypatch):
    seen = {}
    train, quantiles = imitation.train, efficientad._quantiles
    monkeypatch.setattr(imitation, "train", lambda n, how, **k: (seen.update(fit=how.images), train(n, how, **k)))
    monkeypatch.setattr(
        efficientad, "_quantiles", lambda n, held, p: (seen.update(held=held), quantiles(n, held, p))[1]
    )
    config = methods.make_config("efficientad", {**TINY["efficientad"], "teacher_steps": 1, "steps": 1}, quick=True)
    turns = rotated(Images(good(5)), 3)
    methods.fit("efficientad", turns, config, backbone=backbone, seed=0)
    assert_turns_are_together(turns, seen["fit"], seen["held"])


def test_quantiles_that_do_not_increase_are_refused(detector, backbone):
    artifact = detector.save()
    artifact.tensors["quantiles"].fill_(1.0)
    with pytest.raises(ArtifactError, match="increase"):
        methods.load(artifact, backbone=backbone)


def test_a_picture_size_that_nobody_has_is_refused_without_taking_memory(detector, backbone):
    artifact = detector.save()
    artifact.meta["image_size"] = [10_000_000, 10_000_000]
    with pytest.raises(ArtifactError, match="image_size"):
        methods.load(artifact, backbone=backbone)


def test_a_teacher_in_scratch_serves_every_product(backbone, tmp_path):
    config = methods.make_config("efficientad", {**TINY["efficientad"], "teacher_steps": 2, "steps": 2}, quick=True)
    told = []
    for pictures in (good(3), good(4, seed=5)):
        told.clear()
        methods.fit(
            "efficientad",
            Images(pictures),
            config,
            backbone=backbone,
            seed=0,
            scratch=tmp_path,
            progress=lambda stage, *_: told.append(stage),
        )
    assert "teacher" not in told
    assert {"features", "outputs", "student", "quantiles"} <= set(told)


@pytest.mark.parametrize(
    "settings",
    [
        *({"teacher_px": 60}, {"teacher_px": 70}, {"crop_px": 32}, {"crop_px": 50}, {"steps": 0}, {"dim": 0}),
        *({"rate": 0}, {"weight_decay": -1}, {"hard": 1}, {"held_out": 1}),
    ],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        methods.make_config("efficientad", settings)


def test_pictures_that_are_too_small_are_refused(backbone):
    config = methods.make_config("efficientad", TINY["efficientad"], quick=True)
    with pytest.raises(FitError, match="64 px"):
        methods.fit("efficientad", Images(good(2)[..., :40]), config, backbone=backbone, seed=0)


def tiny(**settings):
    return methods.make_config("efficientad", {**TINY["efficientad"], **settings}, quick=True)


def fit(backbone, config, *, pictures=None, **how):
    return methods.fit(
        "efficientad", Images(good(4) if pictures is None else pictures), config, backbone=backbone, seed=0, **how
    )


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(backbone, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1.0)  # after each step
    whole = fit(backbone, tiny()).save().tensors
    told = []

    def note(at, done, _):
        told.append((at, done))

    def stop(at, done, _):
        if (at, done) == (stage, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(backbone, tiny(), scratch=tmp_path, progress=stop)
    resumed = fit(backbone, tiny(), scratch=tmp_path, progress=note).save().tensors
    assert (stage, 3) not in told
    assert (stage, 5) in told
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("settings", [{"model": "m"}, {"crop_px": 0}])
def test_other_networks_and_whole_pictures_are_fitted_saved_and_loaded(backbone, settings):
    config = tiny(**settings, teacher_steps=3, steps=4)
    made = fit(backbone, config)
    again = methods.load(made.save(), backbone=backbone)
    assert again.config == config
    scored, repeated = (each.score(each.embed(good(2, seed=9))) for each in (made, again))
    assert bool(scored.map.isfinite().all())
    assert torch.equal(scored.map, repeated.map)
    assert torch.equal(scored.image, repeated.image)


def test_the_photographs_of_the_setting_are_the_ones_it_is_fitted_on(backbone, tmp_path):
    config = tiny(teacher_steps=2, steps=2)
    ours = fit(backbone, replace(config, photos=drawn_photographs(tmp_path))).save().tensors
    drawn = fit(backbone, config).save().tensors
    assert not torch.equal(ours["nets.teacher.0.weight"], drawn["nets.teacher.0.weight"])
