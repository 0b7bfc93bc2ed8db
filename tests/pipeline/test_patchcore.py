import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from pipeline import methods, whitening
from pipeline.backbone import resolve
from pipeline.data import Artifact, Images
from pipeline.errors import ArtifactError, ConfigError, FitError, ShapeError
from pipeline.maps import smooth, smoothed, upsample
from pipeline.methods.patchcore import PatchCore, PatchCoreConfig, PatchCoreDetector
from pipeline.patches import Pooling, feature_dim, grouped, pooling_kernels

CONFIG = PatchCoreConfig(coreset=0.1)


def good(n, size=64, seed=0):
    """Stripes with a little noise."""
    g = torch.Generator().manual_seed(seed)
    ramp = 128 + 60 * torch.sin(torch.arange(size) / 4).view(1, 1, 1, size)
    return (ramp + 6 * torch.randn(n, 3, size, size, generator=g)).clamp(0, 255).to(torch.uint8)


def bad(n, size=64):
    images = good(n, size, seed=99)
    images[:, :, 40:52, 8:20] = torch.tensor([250, 10, 10], dtype=torch.uint8).view(1, 3, 1, 1)
    return images


@pytest.fixture(scope="module")
def backbone():
    return resolve("resnet18", ("layer2", "layer3"), weights=None, random_weights=True, factories=())


@pytest.fixture(scope="module")
def detector(backbone):
    return methods.fit("patchcore", Images(good(12)), CONFIG, backbone=backbone, seed=0)


def unfold_and_pool(maps, dim):
    """The reference's definition: unfold, upsample, pool each layer's values, stack, pool again."""
    b, _, h, w = maps[0].shape
    layers = []
    for x in maps:
        patches = functional.unfold(x, 3, padding=1).view(b, -1, *x.shape[2:])  # channel-major C*9
        patches = functional.interpolate(patches, size=(h, w), mode="bilinear", align_corners=False)
        rows = patches.permute(0, 2, 3, 1).reshape(-1, 1, patches.shape[1])
        layers.append(functional.adaptive_avg_pool1d(rows, dim))
    stacked = torch.stack([each.squeeze(1) for each in layers], dim=1).flatten(1).unsqueeze(1)
    pooled = functional.adaptive_avg_pool1d(stacked, dim).squeeze(1)
    return pooled.view(b, h, w, dim).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("channels", "dim"),
    [
        ((512, 1024), 1024),
        ((512, 1024), 1000),
        ((128, 256), 384),
        ((128, 256), 300),
        ((128, 256), 256),
        ((128, 256), 255),
        ((64,), 64),
        ((64,), 48),
        ((24, 40, 56), 100),
        ((24, 40, 56), 120),
        ((3, 2), 1),
    ],
)
def test_pooling_equals_unfolding(channels, dim):
    g = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, c, 8 >> i, 6 >> i, generator=g) for i, c in enumerate(channels)]
    pooled = Pooling(channels, dim, torch.device("cpu"))(maps)
    assert pooled.shape == (2, dim, 8, 6)
    torch.testing.assert_close(pooled, unfold_and_pool(maps, dim), rtol=1e-5, atol=1e-5)


def test_the_papers_kernels():
    (start2, layer2), (start3, layer3) = pooling_kernels((512, 1024), 1024)
    assert (start2, start3) == (0, 512)
    kernel, groups = grouped(layer2)
    assert groups == 512
    expected = torch.full((3, 3), 0.1, dtype=torch.float64)
    expected[1, 1] = 0.2
    torch.testing.assert_close(kernel, expected.expand(512, 1, 3, 3), rtol=1e-12, atol=1e-15)
    kernel, groups = grouped(layer3)
    assert groups == 512
    torch.testing.assert_close(kernel, torch.full((512, 2, 3, 3), 1 / 18, dtype=torch.float64))


def test_few_channels_are_not_pooled_up():
    maps = [torch.rand(1, 128, 8, 8), torch.rand(1, 256, 4, 4)]
    pooled = Pooling((128, 256), 1024, torch.device("cpu"))(maps)
    means = [functional.avg_pool2d(x, 3, 1, 1, count_include_pad=True) for x in maps]
    means[1] = functional.interpolate(means[1], size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pooled, torch.cat(means, dim=1), rtol=1e-5, atol=1e-6)
    assert feature_dim((128, 256), 1024) == 384
    assert all(
        grouped(kernel)[1] == c for (_, kernel), c in zip(pooling_kernels((128, 256), 1024), (128, 256), strict=True)
    )


@pytest.mark.parametrize("sigma", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("size", [(40, 30), (9, 5)])
def test_smooth_equals_scipy(sigma, size):
    score_map = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    copy = score_map.clone()
    expected = np.stack([gaussian_filter(each.numpy().astype(np.float64), sigma) for each in score_map])
    np.testing.assert_allclose(smooth(score_map, sigma).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(score_map, copy)


@pytest.mark.parametrize(
    ("grid", "size", "sigma"), [((28, 28), (224, 224), 4.0), ((7, 5), (50, 33), 1.5), ((4, 4), (9, 8), 0.0)]
)
def test_one_matrix_an_axis_is_upsampling_and_smoothing(grid, size, sigma):
    scores = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    expected = smooth(upsample(scores.double(), size), sigma)
    torch.testing.assert_close(smoothed(scores, size, sigma).double(), expected, rtol=1e-6, atol=1e-6)


def paper_score(rows, bank, b):
    """Equations 6 and 7 in float64 for one picture's patches."""
    distances = (rows.double().unsqueeze(1) - bank.double().unsqueeze(0)).norm(dim=2)
    nearest, at = distances.min(dim=1)
    worst = int(nearest.argmax())
    s = nearest[worst]
    around = (bank.double() - bank[at[worst]].double()).norm(dim=1).argsort()[:b]
    others = distances[worst, around]
    top = others.max()
    return float((1 - torch.exp(s - top) / torch.exp(others - top).sum()) * s), float(s)


@pytest.mark.parametrize("scale", [1.0, 200.0])  # at 200, exp() overflows unless the maximum is taken off
def test_image_score_is_the_papers(detector, backbone, scale):
    features = detector.embed(torch.cat([good(2, seed=5), bad(3)]))
    rows = features.maps["patch"].permute(0, 2, 3, 1).flatten(1, 2) * scale
    features = dataclasses.replace(features, maps={"patch": features.maps["patch"] * scale})
    truth = [paper_score(each, detector.bank * scale, 9) for each in rows]
    for reweight, squared in ((True, False), (True, True), (False, False), (False, True)):
        config = dataclasses.replace(CONFIG, reweight=reweight, squared=squared)
        scores = PatchCoreDetector(detector.bank * scale, config, (64, 64), backbone).score(features)
        expected = [(whole if reweight else s) * (s if squared else 1) for whole, s in truth]
        assert scores.image.tolist() == pytest.approx(expected, rel=1e-4)
        assert scores.image.isfinite().all()


def test_map_is_the_smoothed_upsampled_distance(detector, backbone):
    features = detector.embed(bad(2))
    rows = features.maps["patch"].permute(0, 2, 3, 1).reshape(2, 64, -1)
    grid = torch.cdist(rows, detector.bank.expand(2, -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    grid = grid.amin(dim=2).view(2, 1, 8, 8)
    up = functional.interpolate(grid, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(detector.score(features).map, smooth(up, 4.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("squared", [False, True])
def test_image_score_may_be_the_maps_largest(detector, backbone, squared):
    features = detector.embed(torch.cat([good(2, seed=5), bad(3)]))
    config = dataclasses.replace(CONFIG, image_score="map", squared=squared)
    scores = PatchCoreDetector(detector.bank, config, (64, 64), backbone).score(features)
    assert scores.image.tolist() == [float(each.max()) for each in scores.map]
    assert scores.image[:2].max() < scores.image[2:].min()


def test_finds_the_defect(detector):
    scores = detector.score(detector.embed(torch.cat([good(4, seed=7), bad(4)])))
    assert scores.image.shape == (8,)
    assert scores.map.shape == (8, 64, 64)
    assert scores.image.dtype == scores.map.dtype == torch.float32
    assert scores.image[4:].min() > scores.image[:4].max()
    inside = scores.map[4:, 40:52, 8:20].mean()
    assert inside > 1.5 * scores.map[4:, :24, 32:].mean()


def test_batch_of_one_equals_batch_of_many_and_threads_agree(detector):
    images = torch.cat([good(3, seed=8), bad(3)])
    copy = images.clone()

    def run(x):
        return detector.score(detector.embed(x))

    many = run(images)
    with ThreadPoolExecutor(3) as pool:
        ones = list(pool.map(run, images.split(1)))
    torch.testing.assert_close(torch.cat([one.image for one in ones]), many.image, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.cat([one.map for one in ones]), many.map, rtol=1e-5, atol=1e-5)
    assert torch.equal(images, copy)
    assert run(images[:0]).map.shape == (0, 64, 64)


def test_a_seed_gives_the_same_detector(detector, backbone):
    again = methods.fit("patchcore", Images(good(12)), CONFIG, backbone=backbone, seed=0)
    assert torch.equal(again.bank, detector.bank)
    other = methods.fit("patchcore", Images(good(12)), CONFIG, backbone=backbone, seed=1)
    assert not torch.equal(other.bank, detector.bank)


def test_coreset_of_everything_scores_its_own_pictures_zero(backbone):
    config = PatchCoreConfig(coreset=1.0, reweight=False)
    images = good(2)
    detector = PatchCore().fit(Images(images), config, backbone=backbone, seed=0)
    assert detector.bank.shape == (128, 384)
    assert detector.score(detector.embed(images)).image.max() < 1e-3


def rows_of(detector, images):
    return detector.embed(images).maps["patch"].permute(0, 2, 3, 1).reshape(-1, detector.bank.shape[1]).double()


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_whitened_distances_are_mahalanobis_in_the_mixed_covariance(detector, backbone, share):
    """By the plain features of the same backbone, numpy's covariance and a solve; the mean variance keeps its size."""
    fitted = methods.fit(
        "patchcore", Images(good(12)), PatchCoreConfig(coreset=0.1, whitening=share), backbone=backbone, seed=0
    )
    plain = rows_of(detector, good(12)).numpy()
    covariance = np.cov(plain.T, bias=True)
    variance = covariance.diagonal().mean()
    mixed = share * covariance + (1 - share) * variance * np.eye(len(covariance))
    ours, theirs = rows_of(fitted, bad(1)).numpy(), rows_of(detector, bad(1)).numpy()
    for i, j in ((0, 1), (3, 40), (44, 45)):
        apart = theirs[i] - theirs[j]
        expected = variance * apart @ np.linalg.solve(mixed, apart)
        assert ((ours[i] - ours[j]) ** 2).sum() == pytest.approx(expected, rel=1e-3)
    turned = rows_of(fitted, good(12)).numpy()
    nearest_of = np.abs(turned[:, None, :8] - fitted.bank.double().numpy()[None, :, :8]).max(axis=2).min(axis=0)
    assert nearest_of.max() < 1e-3 * np.abs(turned).max(), "the bank is of turned features"


def test_without_whitening_features_are_the_papers_to_the_bit(detector, backbone):
    maps = list(backbone(bad(2)).values())
    pooled = Pooling(tuple(backbone.channels.values()), CONFIG.dim, backbone.device)(maps)
    assert torch.equal(detector.embed(bad(2)).maps["patch"], pooled)
    assert detector.axes is None
    assert set(detector.save().tensors) == {"bank"}
    assert PatchCoreConfig().whitening == 0


def test_a_whitened_model_is_saved_loaded_and_refitted_in_its_own_metric(backbone):
    config = PatchCoreConfig(coreset=0.1, whitening=0.9)
    fitted = methods.fit("patchcore", Images(good(12)), config, backbone=backbone, seed=0)
    loaded = PatchCore().load(fitted.save(), backbone=backbone)
    one, two = (each.score(each.embed(bad(2))) for each in (fitted, loaded))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.map, two.map)
    assert one.image.min() > fitted.score(fitted.embed(good(4, seed=7))).image.max()
    grown = PatchCore().refit(fitted, Images(good(6, seed=5)), new_share_max=0.5, seed=0).detector
    assert torch.equal(grown.axes, fitted.axes)
    artifact = fitted.save()
    for axes in (artifact.tensors["axes"][:-1], artifact.tensors["axes"].half()):
        with pytest.raises(ArtifactError, match="axes must be"):
            PatchCore().load(
                dataclasses.replace(artifact, tensors=artifact.tensors | {"axes": axes.clone()}), backbone=backbone
            )
    with pytest.raises(ArtifactError, match="needs the tensors"):
        PatchCore().load(dataclasses.replace(artifact, tensors={"bank": fitted.bank}), backbone=backbone)
    with pytest.raises(ConfigError, match="whitening must be 0 to"):
        PatchCoreConfig(whitening=1.0)


def test_nothing_to_whiten_is_refused(backbone):
    with pytest.raises(FitError, match="all the same"):
        whitening.axes_of(torch.ones(40, 8), 0.9)
    # Far from the origin, where float32 sums of squares would hold nothing of the spread.
    rows = torch.randn(50_000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 0.5, 1.0])
    axes = whitening.axes_of(rows + 1e4, 0.99)
    assert whitening.turned(rows.clone(), axes).var(dim=0) == pytest.approx([1.5625] * 4, rel=0.05)


def test_progress(backbone):
    calls = []
    methods.fit("patchcore", Images(good(12)), CONFIG, backbone=backbone, seed=0, progress=lambda *c: calls.append(c))
    assert calls[:2] == [("features", 8, 12), ("features", 12, 12)]
    assert calls[-1] == ("coreset", 76, 76)


def test_save_and_load(detector, backbone):
    artifact = detector.save()
    again = methods.load(dataclasses.replace(artifact, meta=json.loads(json.dumps(artifact.meta))), backbone=backbone)
    images = bad(2)
    ours, theirs = (each.score(each.embed(images)) for each in (detector, again))
    assert torch.equal(ours.image, theirs.image)
    assert torch.equal(ours.map, theirs.map)
    assert again.config == CONFIG
    assert artifact.tensors["bank"].is_contiguous()


def broken(artifact, *, tensors=None, method="patchcore", **meta):
    return Artifact(method=method, tensors=tensors or artifact.tensors, meta={**artifact.meta, **meta})


def test_damaged_artifacts_are_refused(detector, backbone):
    artifact = detector.save()
    bank, config = artifact.tensors["bank"], artifact.meta["config"]
    holed = bank.clone()
    holed[3, 4] = torch.nan
    tensors = [{"bnk": bank}, {"bank": bank, "more": bank}, {"bank": bank[:, :-1]}, {"bank": bank[:8]}]
    tensors += [{"bank": bank.double()}, {"bank": bank[0]}, {"bank": holed}]
    bad_ones = [broken(artifact, tensors=each) for each in tensors]
    configs = [None, {}, {**config, "more": 1}, {**config, "coreset": 7}, {**config, "dim": "1024"}]
    bad_ones += [broken(artifact, config=each) for each in configs]
    bad_ones += [broken(artifact, image_size=each) for each in (None, [64], [64, 0], "64", [64.5, 64])]
    bad_ones += [broken(artifact, backbone=None), broken(artifact, method="padim")]
    for each in bad_ones:
        with pytest.raises(ArtifactError):
            methods.load(each, backbone=backbone)
    with pytest.raises(ArtifactError, match="of 'padim'"):
        PatchCore().load(broken(artifact, method="padim"), backbone=backbone)


def test_another_backbone_is_refused(detector):
    other = resolve("resnet18", ("layer2", "layer3"), weights=None, random_weights=True, factories=(), seed=1)
    with pytest.raises(ArtifactError, match="fitted on"):
        methods.load(detector.save(), backbone=other)


def test_wrong_pictures_are_refused(detector):
    with pytest.raises(ShapeError, match=r"\(1, 3, 32, 64\).*\(B, 3, 64, 64\)"):
        detector.embed(torch.zeros(1, 3, 32, 64, dtype=torch.uint8))
    with pytest.raises(ShapeError, match=r"\(1, 1, 64, 64\)"):
        detector.embed(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    features = detector.embed(good(1))
    with pytest.raises(ShapeError, match="200 dimensions, the bank needs 384"):
        detector.score(dataclasses.replace(features, maps={"patch": features.maps["patch"][:, :200]}))


def test_too_little_to_fit(backbone):
    with pytest.raises(FitError, match="at least 2 good pictures, not 1"):
        PatchCore().fit(Images(good(1)), CONFIG, backbone=backbone, seed=0)
    with pytest.raises(FitError, match=r"bank of 1 rows .* neighbours = 9: .* at least 0.0704 instead of 0.01"):
        PatchCore().fit(Images(good(2)), PatchCoreConfig(), backbone=backbone, seed=0)


def test_settings_from_texts():
    made = methods.make_config("patchcore", {"coreset": "0.25", "dim": "512", "reweight": "false"})
    assert made == PatchCoreConfig(coreset=0.25, dim=512, reweight=False)
    assert methods.make_config("patchcore", {}) == PatchCoreConfig()
    cases = {
        "no setting 'corset'; nearest: coreset. It has: coreset, dim": {"corset": "1"},
        "dim": {"dim": "many"},
        "at most 1, not 2.0": {"coreset": "2"},
        "at most 1, not nan": {"coreset": "nan"},
        "at least 2": {"neighbours": "1"},
        "sigma": {"sigma": "-1"},
        "dim must": {"dim": "0"},
    }
    for message, settings in cases.items():
        with pytest.raises(ConfigError, match=message):
            methods.make_config("patchcore", settings)


def test_unknown_methods(backbone):
    with pytest.raises(ConfigError, match="'patchcor'; nearest: patchcore"):
        methods.make_config("patchcor", {})
    with pytest.raises(ConfigError, match="needs a PatchCoreConfig, not dict"):
        methods.fit("patchcore", Images(good(2)), {}, backbone=backbone, seed=0)
    with pytest.raises(ArtifactError, match=r"'magic'; known are .*patchcore"):
        methods.load(Artifact(method="magic", tensors={}), backbone=backbone)
