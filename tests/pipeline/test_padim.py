"""PaDiM's numbers against a slow and obvious version of the paper's equations."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from pipeline import gaussian, methods
from pipeline.backbone import resolve
from pipeline.data import Images
from pipeline.errors import FitError
from tests.conformance.pictures import bad, good


@pytest.fixture(scope="module")
def backbone():
    return resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())


def embedding_of(detector, backbone, pictures):
    """The paper's: all layers at the first one's grid, the deeper ones' values repeated; then the chosen channels."""
    maps = list(backbone(pictures).values())
    grid = maps[0].shape[2:]
    joined = torch.cat([interpolate(m, size=grid, mode="nearest") for m in maps], dim=1)
    chosen = detector.save().tensors["embedding"]
    if chosen.dim() == 1:
        return joined[:, chosen].numpy()
    return torch.einsum("bchw,cd->bdhw", joined, chosen).numpy()


@pytest.mark.parametrize("settings", [{"dim": 30}, {"dim": 1000}, {"dim": 20, "embedding": "semi-orthogonal"}])
def test_scores_are_the_papers(backbone, settings):
    config = methods.make_config("padim", {**settings, "sigma": 2.0})
    detector = methods.fit("padim", Images(good(20)), config, backbone=backbone, seed=3)
    trained = embedding_of(detector, backbone, good(20)).astype(np.float64)
    tested = embedding_of(detector, backbone, bad(2)).astype(np.float64)
    _, dim, height, width = trained.shape
    distances = np.zeros((2, height, width))
    for i in range(height):
        for j in range(width):
            values = trained[:, :, i, j]
            inverse = np.linalg.inv(np.cov(values, rowvar=False) + 0.01 * np.eye(dim))
            for b in range(2):
                off = tested[b, :, i, j] - values.mean(axis=0)
                distances[b, i, j] = np.sqrt(off @ inverse @ off)
    wide = interpolate(torch.from_numpy(distances)[None], size=(64, 64), mode="bilinear", align_corners=False)[0]
    expected = np.stack([gaussian_filter(each, 2.0) for each in wide.numpy()])
    scored = detector.score(detector.embed(bad(2)))
    np.testing.assert_allclose(scored.map.numpy(), expected, rtol=2e-3)
    np.testing.assert_allclose(scored.image.numpy(), expected.max(axis=(1, 2)), rtol=2e-3)


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
