"""Uninformed Students' numbers against slow and obvious versions of the paper's equations."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline import families, methods, patch_cnn, training
from pipeline.backbone import resolve
from pipeline.commissioning import rotated
from pipeline.data import Features, Images
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.families import Family
from pipeline.learned import normalised
from pipeline.methods import students
from pipeline.patch_cnn import PatchCnn
from tests.conformance.pictures import TINY, good
from tests.pipeline.test_learned import assert_turns_are_together
from tests.pipeline.test_photographs import drawn_photographs

PAPER = {
    17: [("c", 6, 128), ("c", 5, 256), ("c", 5, 256), ("c", 4, 128)],
    33: [("c", 5, 128), ("mp",), ("c", 5, 256), ("mp",), ("c", 2, 256), ("c", 4, 128)],
    65: [("c", 5, 128), ("mp",), ("c", 5, 128), ("mp",), ("c", 5, 256), ("mp",), ("c", 4, 256), ("c", 1, 128)],
}


def papers(net: PatchCnn) -> nn.Sequential:
    """The paper's table as modules, with the weights of `net`: (B, 3, p, p) -> (B, 128, 1, 1)."""
    layers, channels, convs = [], 3, iter(net.convs)
    for kind, *numbers in PAPER[net.field]:
        if kind == "mp":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        conv = nn.Conv2d(channels, numbers[1], numbers[0])
        conv.load_state_dict(next(convs).state_dict())
        channels = numbers[1]
        layers += [conv, nn.LeakyReLU(5e-3)]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("field", [17, 33, 65])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@torch.inference_mode()
def test_dense_is_patch_by_patch(field, stride):
    with training.seeded(field):
        net = PatchCnn(field)
        x = torch.randn(1, 3, field + 4, field + 8)
    dense = net(x, stride)
    starts = [(top, left) for top in range(0, 5, stride) for left in range(0, 9, stride)]
    patches = torch.cat([x[:, :, top : top + field, left : left + field] for top, left in starts])
    expected = papers(net)(patches)
    assert expected.shape == (len(starts), 128, 1, 1)
    torch.testing.assert_close(dense[0].flatten(1).T, expected.flatten(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net(patches), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("field", [17, 33, 65])
@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_a_descriptor_for_each_stride_by_stride_pixels(field, stride):
    net = PatchCnn(field)
    seen = net(patch_cnn.padded(torch.zeros(1, 3, 64, 72), field, stride), stride)
    assert tuple(seen.shape[2:]) == patch_cnn.grid_of((64, 72), stride) == (64 // stride, 72 // stride)


@torch.inference_mode()
def test_the_patch_of_a_descriptor_is_around_its_pixel():
    net = PatchCnn(33)
    image = torch.randn(1, 3, 64, 64)
    seen = net(patch_cnn.padded(image, 33, 1), 1)
    patch = image[:, :, 30 - 16 : 30 + 17, 40 - 16 : 40 + 17]
    torch.testing.assert_close(seen[..., 30, 40], net(patch)[..., 0, 0], atol=1e-4, rtol=1e-4)


def test_error_and_variance_are_the_papers():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 5, 3, 4, generator=generator)
    students = torch.randn(3, 2, 5, 3, 4, generator=generator)
    error, variance = families.error_and_variance(teacher, students)
    mean = sum(students) / 3
    torch.testing.assert_close(error, ((mean - teacher) ** 2).sum(dim=1))
    expected = sum((s**2).sum(dim=1) for s in students) / 3 - (mean**2).sum(dim=1)
    torch.testing.assert_close(variance, expected)


def test_compactness_is_the_sum_of_correlations_off_the_diagonal():
    values = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    matrix = torch.corrcoef(values.T)
    expected = sum(matrix[i, j] for i in range(6) for j in range(6) if i != j)
    torch.testing.assert_close(patch_cnn.compactness(values), expected)


def test_triplets_mine_the_nearer_of_two_distances():
    anchors, near, far = (torch.tensor([[value]]) for value in (0.0, 1.0, 3.0))
    torch.testing.assert_close(patch_cnn.triplet(anchors, near, far, 5.0), torch.tensor(5.0 + 1 - 4))
    assert float(patch_cnn.triplet(anchors, near, far, 1.0)) == 0


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


@pytest.fixture(scope="module")
def detector(backbone):
    tiny = {**TINY["students"], "fields": "33,65", "stride": 8, "by_position": False}
    config = methods.make_config("students", tiny, quick=True)
    return methods.fit("students", Images(good(6)), config, backbone=backbone, seed=0)


def test_maps_are_standardised_summed_and_averaged_over_patch_sizes(detector):
    generator = torch.Generator().manual_seed(0)
    error, variance = torch.rand(2, 2, 2, 64, 64, generator=generator)
    scored = detector.score(Features(maps={"error": error, "variance": variance}, image_size=(64, 64)))
    expected = torch.zeros(2, 64, 64)
    for p, ((e_mean, e_std), (v_mean, v_std)) in enumerate(detector.scales.tolist()):
        expected += ((error[:, p] - e_mean) / e_std + (variance[:, p] - v_mean) / v_std) / 2
    torch.testing.assert_close(scored.map, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scored.image, expected.amax(dim=(1, 2)), rtol=1e-4, atol=1e-4)


def test_by_position_a_place_is_judged_by_what_good_pictures_show_there(detector, backbone):
    maps = 5 + torch.randn(40, 1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    maps[..., 3, 4] = 100 + 10 * maps[..., 3, 4]  # a rim
    scales = families.scales_of(maps, by_position=True)
    assert scales.shape == (1, 2, 2, 8, 8)
    torch.testing.assert_close(scales[:, :, 0], maps.mean(dim=0))
    variances = maps.var(dim=0, unbiased=False)
    usual = variances.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(scales[:, :, 1], ((40 * variances + usual) / 41).sqrt())
    assert 1.4 * float(scales[0, 0, 1, 3, 4]) < 20  # a defect two deviations above the rim shows
    config = replace(detector.config, by_position=True)
    grid = (64 // 8, 64 // 8)
    scales = scales.expand(2, -1, -1, -1, -1)
    places = students.StudentsDetector(detector._nets, scales, config, (64, 64), backbone)
    error, variance = torch.rand(2, 2, 2, *grid, generator=torch.Generator().manual_seed(0))
    scored = places.score(Features(maps={"error": error, "variance": variance}, image_size=grid))
    expected = sum(((each - scales[:, k, 0]) / scales[:, k, 1]).mean(dim=1) for k, each in enumerate((error, variance)))
    torch.testing.assert_close(scored.map, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ShapeError, match=r"of \(4, 4\) places, the model has \(8, 8\)"):
        places.score(Features(maps={"error": error[..., :4, :4], "variance": variance[..., :4, :4]}, image_size=grid))


def test_by_position_one_held_out_picture_is_enough(backbone):
    config = methods.make_config("students", TINY["students"], quick=True)
    assert config.by_position
    made = methods.fit("students", Images(good(4)), config, backbone=backbone, seed=0)
    again = methods.load(made.save(), backbone=backbone)
    scored = again.score(again.embed(good(2)))
    assert bool(scored.map.isfinite().all())
    assert torch.equal(scored.map, made.score(made.embed(good(2))).map)
    artifact = made.save()
    damaged = {**artifact.tensors, "scales": artifact.tensors["scales"][..., :2]}
    with pytest.raises(ArtifactError, match="scales"):
        methods.load(replace(artifact, tensors=damaged), backbone=backbone)


def test_the_teacher_is_normalised_over_the_good_pictures():
    with training.seeded(0):
        family = Family(33, 2)
    pictures = good(4)
    families.normalise(family, pictures, 4, lambda *_: None)
    with torch.inference_mode():
        x = patch_cnn.padded(normalised(pictures, torch.device("cpu")), 33, 4)
        seen = family.teacher(x, 4).transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen.mean(dim=1), torch.zeros(128), atol=0.05, rtol=0)
    torch.testing.assert_close(seen.std(dim=1), torch.ones(128), atol=0.05, rtol=0)


def tiny(**settings):
    return methods.make_config("students", {**TINY["students"], **settings}, quick=True)


def fit(backbone, config, *, pictures=None, **how):
    pixels = good(3) if pictures is None else pictures
    return methods.fit("students", Images(pixels), config, backbone=backbone, seed=0, **how)


@pytest.mark.parametrize("stage", ["teacher", "students 33"])
def test_a_training_that_was_cut_off_ends_as_if_it_had_not_been(backbone, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1.0)  # after each step
    config = tiny(metric=1.0)
    whole = fit(backbone, config).save().tensors
    told = []

    def note(at, done, _):
        told.append((at, done))

    def stop(at, done, _):
        if (at, done) == (stage, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(backbone, config, scratch=tmp_path, progress=stop)
    resumed = fit(backbone, config, scratch=tmp_path, progress=note).save().tensors
    assert (stage, 2) not in told
    assert (stage, 4) in told
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_teacher_in_scratch_serves_every_product(backbone, tmp_path):
    config = tiny(teacher_steps=2, steps=2)
    fit(backbone, config, scratch=tmp_path)
    told = []
    fit(backbone, config, pictures=good(4, seed=5), scratch=tmp_path, progress=lambda stage, *_: told.append(stage))
    assert "teacher" not in told
    assert {"features", "outputs 33", "students 33", "scales"} <= set(told)


def test_all_turns_of_a_held_out_picture_are_held_out(backbone, monkeypatch):
    seen = {}
    train, maps_of = families.train, families.maps_of
    monkeypatch.setattr(families, "train", lambda f, how, **k: (seen.update(fit=how.images), train(f, how, **k)))
    monkeypatch.setattr(families, "maps_of", lambda n, held, *a: (seen.update(held=held), maps_of(n, held, *a))[1])
    turns = rotated(Images(good(5)), 3)
    methods.fit("students", turns, tiny(teacher_steps=1, steps=1), backbone=backbone, seed=0)
    assert_turns_are_together(turns, seen["fit"], seen["held"])


def test_the_photographs_of_the_setting_are_the_ones_it_is_fitted_on(backbone, tmp_path):
    config = tiny(teacher_steps=2, steps=2)
    ours = fit(backbone, replace(config, photos=drawn_photographs(tmp_path))).save().tensors
    drawn = fit(backbone, config).save().tensors
    name = "families.0.teacher.convs.0.weight"
    assert not torch.equal(ours[name], drawn[name])


@pytest.mark.parametrize("batch", [2, 4, 6, 10])
def test_triplets_without_another_picture_in_the_batch_are_refused(batch):
    with pytest.raises(ConfigError, match=f"multiple of 4 from 8, .* not {batch}"):
        methods.make_config("students", {"metric": 0.5, "teacher_batch": batch})
    methods.make_config("students", {"metric": 0.0, "teacher_batch": batch})


@pytest.mark.parametrize("batch", [8, 12])
def test_triplets_take_multiples_of_four(batch):
    assert methods.make_config("students", {"metric": 0.5, "teacher_batch": batch}).teacher_batch == batch


@pytest.mark.parametrize(
    "settings",
    [
        *({"fields": fields} for fields in ("", "16", "17,17", "a", "17,")),
        *({"stride": 3}, {"students": 1}, {"steps": 0}, {"teacher_rate": 0}, {"metric": -1}, {"held_out": 0}),
        *({"view_px": 8}, {"crop_px": -1}),
    ],
)
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        methods.make_config("students", settings)


def test_pictures_that_are_too_small_are_refused(backbone):
    config = methods.make_config("students", TINY["students"], quick=True)
    with pytest.raises(FitError, match="64 px"):
        methods.fit("students", Images(good(2)[..., :40]), config, backbone=backbone, seed=0)
