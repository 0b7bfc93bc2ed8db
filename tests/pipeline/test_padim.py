"""PaDiM's numbers against a slow and obvious version of the paper's equations."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import avg_pool2d, interpolate

from pipeline import embedding, gaussian, methods
from pipeline.backbone import resolve
from pipeline.data import Images
from pipeline.errors import ConfigError, FitError
from pipeline.patches import Pooling
from tests.conformance.pictures import bad, good


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


def joined(backbone, pictures, *, locally_aware):
    """All layers at the first one's grid: the deeper ones' values repeated, or means of 3x3 interpolated."""
    maps = list(backbone(pictures).values())
    grid = maps[0].shape[2:]
    if not locally_aware:
        return torch.cat([interpolate(m, size=grid, mode="nearest") for m in maps], dim=1)
    means = [avg_pool2d(m, 3, stride=1, padding=1) for m in maps]
    return torch.cat([interpolate(m, size=grid, mode="bilinear", align_corners=False) for m in means], dim=1)


def joined_channel(maps, channel, *, locally_aware):
    """One channel of what `joined` gives."""
    return joined(lambda _: dict(enumerate(maps)), None, locally_aware=locally_aware)[:, [channel]].numpy()


def embedding_of(detector, backbone, pictures):
    """The paper's: the chosen channels of all layers; or a projection of them."""
    layers = joined(backbone, pictures, locally_aware=detector.config.locally_aware)
    chosen = detector.save().tensors["embedding"]
    if chosen.dim() == 1:
        return layers[:, chosen].numpy()
    return torch.einsum("bchw,cd->bdhw", layers, chosen).numpy()


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 30},
        {"dim": 1000},
        {"dim": 20, "embedding": "semi-orthogonal"},
        {"dim": 30, "shrinkage": 0.3},
        {"dim": 30, "locally_aware": True},
        {"dim": 20, "embedding": "principal", "locally_aware": True, "shrinkage": 0.2, "ridge": 1e-3},
    ],
    ids=str,
)
def test_scores_are_the_papers(backbone, settings):
    config = methods.make_config("padim", {**settings, "sigma": 2.0})
    detector = methods.fit("padim", Images(good(20)), config, backbone=backbone, seed=3)
    trained = embedding_of(detector, backbone, good(20)).astype(np.float64)
    tested = embedding_of(detector, backbone, bad(2)).astype(np.float64)
    _, dim, height, width = trained.shape
    at = [(i, j) for i in range(height) for j in range(width)]
    covariances = {(i, j): np.cov(trained[:, :, i, j], rowvar=False) for i, j in at}
    pooled = np.mean(list(covariances.values()), axis=0)
    distances = np.zeros((2, height, width))
    for i, j in at:
        covariance = (1 - config.shrinkage) * covariances[i, j] + config.shrinkage * pooled
        inverse = np.linalg.inv(covariance + config.ridge * np.eye(dim))
        for b in range(2):
            off = tested[b, :, i, j] - trained[:, :, i, j].mean(axis=0)
            distances[b, i, j] = np.sqrt(off @ inverse @ off)
    wide = interpolate(torch.from_numpy(distances)[None], size=(64, 64), mode="bilinear", align_corners=False)[0]
    expected = np.stack([gaussian_filter(each, 2.0) for each in wide.numpy()])
    scored = detector.score(detector.embed(bad(2)))
    np.testing.assert_allclose(scored.map.numpy(), expected, rtol=2e-3)
    np.testing.assert_allclose(scored.image.numpy(), expected.max(axis=(1, 2)), rtol=2e-3)


@pytest.mark.parametrize("locally_aware", [False, True])
def test_principal_axes_are_those_of_all_features(backbone, locally_aware):
    pictures = good(20)  # in more than one batch
    config = methods.make_config("padim", {"dim": 12, "embedding": "principal", "locally_aware": locally_aware})
    told = []
    detector = methods.fit(
        "padim", Images(pictures), config, backbone=backbone, seed=0, progress=lambda *each: told.append(each)
    )
    axes = detector.save().tensors["embedding"].double().numpy()
    values = embedding.rows(joined(backbone, pictures, locally_aware=locally_aware)).flatten(0, 1).double().numpy()
    expected = np.linalg.eigh(np.cov(values, rowvar=False))[1][:, -12:]
    np.testing.assert_allclose(np.abs(np.diag(axes.T @ expected)), 1, atol=1e-6)
    assert told == [(stage, done, 20) for stage in ("axes", "features") for done in (0, 16, 20)]


def test_principal_axes_are_found_beside_a_large_mean():
    spread = torch.tensor([1e-4, 1e-3, 1e-2, 1.0]).sqrt()
    mixed = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()).Q
    values = (torch.randn(50, 64, 4, generator=torch.Generator().manual_seed(1)).double() * spread) @ mixed.T + 1000
    maps = values.float().transpose(1, 2).reshape(50, 4, 8, 8)
    found = embedding.principal(([part] for part in maps.split(16)), 2, locally_aware=False).double()
    exact = maps.double().flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    expected = np.linalg.eigh(np.cov(exact, rowvar=False))[1][:, -2:]
    angles = np.linalg.svd(found.numpy().T @ expected)[1]
    assert angles.min() > 1 - 1e-6
    assert bool((found.gather(0, found.abs().argmax(dim=0, keepdim=True)) > 0).all())


def test_more_principal_axes_than_features_vary_along_are_refused():
    flat = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 5, 1, 1)
    with pytest.raises(FitError, match="along 1 axes: dim must be at most that, not 3"):
        embedding.principal([[flat]], 3, locally_aware=False)
    with pytest.raises(FitError, match="not finite"):
        embedding.principal([[flat * float("nan")]], 1, locally_aware=False)


def test_principal_axes_of_all_channels_are_the_channels(backbone):
    fitted = []
    for kind in ("principal", "random"):
        config = methods.make_config("padim", {"dim": 384, "embedding": kind, "shrinkage": 0.2})
        fitted.append(methods.fit("padim", Images(good(4)), config, backbone=backbone, seed=0).save().tensors)
    assert torch.equal(fitted[0]["embedding"], torch.arange(384))
    assert torch.equal(fitted[0]["factors"], fitted[1]["factors"])


def test_locally_aware_features_are_patchcores(backbone):
    maps = list(backbone(good(2)).values())
    expected = Pooling(tuple(m.shape[1] for m in maps), 1024, backbone.device)(maps)
    found = embedding.embed(maps, torch.arange(expected.shape[1]), locally_aware=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("locally_aware", [False, True])
@pytest.mark.parametrize("channel", [0, 200])
def test_a_layer_may_have_no_chosen_channel(backbone, channel, locally_aware):
    maps = list(backbone(good(1)).values())
    found = embedding.embed(maps, torch.tensor([channel]), locally_aware=locally_aware)
    torch.testing.assert_close(found, torch.from_numpy(joined_channel(maps, channel, locally_aware=locally_aware)))


@pytest.mark.parametrize("shrinkage", [-0.1, 0.95, float("nan")])
def test_shrinkage_without_a_way_back_is_refused(shrinkage):
    with pytest.raises(ConfigError, match=r"shrinkage must be 0 to 0\.9"):
        methods.make_config("padim", {"shrinkage": shrinkage})


def test_a_semi_orthogonal_embedding_has_orthonormal_columns(backbone):
    config = methods.make_config("padim", {"dim": 50, "embedding": "semi-orthogonal"})
    matrix = methods.fit("padim", Images(good(4)), config, backbone=backbone, seed=0).save().tensors["embedding"]
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(50), atol=1e-5, rtol=0)


def test_sums_in_parts_merge_to_the_whole():
    values = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0)) + 1000
    whole, first, second = (gaussian.RunningSums(values[0]) for _ in range(3))
    whole.add(values)
    first.add(values[:15])
    second.add(values[15:])
    first.merge(second)
    for a, b in zip(whole.gaussians(0.01), first.gaussians(0.01), strict=True):
        torch.testing.assert_close(a, b)
    means, factors = whole.gaussians(0.01)
    torch.testing.assert_close(means, values.mean(dim=0))
    for place in range(3):
        covariance = torch.from_numpy(np.cov(values[:, place].double().numpy(), rowvar=False)) + 0.01 * torch.eye(5)
        torch.testing.assert_close(
            (factors[place] @ factors[place].T).double(), covariance.double(), rtol=1e-4, atol=1e-5
        )


def test_sums_about_other_shifts_do_not_merge():
    with pytest.raises(FitError, match="different shifts"):
        gaussian.RunningSums(torch.zeros(1, 2)).merge(gaussian.RunningSums(torch.ones(1, 2)))


def test_factors_survive_packing():
    factors = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0)).tril()
    assert torch.equal(gaussian.unpack(gaussian.pack(factors), 6), factors)


@pytest.mark.parametrize(("positions", "dim"), [(57, 160), (600, 60), (2, 800)])
@pytest.mark.parametrize("pictures", [1, 2])
def test_distances_are_the_same_by_however_many_threads(positions, dim, pictures, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    factors = torch.randn(positions, dim, dim, generator=draw).mul_(0.02).tril_().add_(torch.eye(dim))
    values, means = torch.randn(pictures, positions, dim, generator=draw), torch.randn(positions, dim, generator=draw)
    away, wide = (values - means).double().permute(1, 2, 0).numpy(), factors.double().numpy()
    # numpy's, as torch.linalg.solve of matrices this large hangs or errs after set_num_threads (pytorch#142815)
    solved = np.linalg.solve(wide @ wide.swapaxes(1, 2), away)
    wanted = torch.from_numpy(np.sqrt((away * solved).sum(axis=1)).T)
    shared, pool = [], gaussian._pool
    monkeypatch.setattr(gaussian, "_pool", lambda threads: shared.append(threads) or pool(threads))
    before = torch.get_num_threads()

    def found(_):
        with torch.inference_mode():
            return gaussian.mahalanobis(values, means, factors)

    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with ThreadPoolExecutor(4) as lanes:
                at_once = list(lanes.map(found, range(4)))
            for each in [found(0), *at_once]:
                assert (each.shape, each.is_contiguous()) == ((pictures, positions), True)
                torch.testing.assert_close(each.double(), wanted, rtol=1e-5, atol=0)
        assert set(shared) == ({2, 3} if pictures == 1 else set())
    finally:
        torch.set_num_threads(before)
