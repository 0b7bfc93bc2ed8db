"""SPADE against the slow and obvious version, and what its search costs."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import interpolate

from pipeline import methods
from pipeline.backbone import resolve
from pipeline.data import Images
from pipeline.errors import FitError
from pipeline.maps import smooth, upsample
from pipeline.pyramid import matches_min, squared_distances
from tests.conformance.pictures import bad, good


def obvious(query, gallery, k, window):
    """Concatenate at the first grid, compare everything with everything, in float64."""
    grid = query[0].shape[1:]
    rows = torch.cat([interpolate(m[None], size=grid, mode="nearest")[0] for m in query]).double()
    bank = torch.cat([interpolate(m, size=grid, mode="nearest") for m in gallery], dim=1).double()
    grids = [m.shape[1:] for m in query]
    nested = all(a % b == 0 for f, c in pairwise(grids) for a, b in zip(f, c, strict=True))
    cell = grid[0] // query[1].shape[1] if len(query) > 1 and nested else 1
    out = torch.empty(*grid, k)
    for i in range(grid[0]):
        for j in range(grid[1]):
            distances = (bank - rows[:, i, j].view(1, -1, 1, 1)).square().sum(dim=1)
            if window:
                down = (torch.arange(grid[0]) // cell - i // cell).abs() <= window
                across = (torch.arange(grid[1]) // cell - j // cell).abs() <= window
                distances = distances.masked_fill(~(down.view(-1, 1) & across), torch.inf)
            out[i, j] = distances.flatten().topk(k, largest=False).values
    return out


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize(
    "grids",
    [
        ((8, 8), (4, 4)),
        ((12, 8), (6, 4), (3, 2)),
        ((8, 8), (4, 4), (3, 3)),
        ((7, 6), (4, 3)),
        ((6, 6),),
        ((4, 4), (4, 4)),
    ],
)
def test_distances_are_the_papers(grids, k, window):
    generator = torch.Generator().manual_seed(1)
    channels = (5, 7, 9)
    shift = 30.0  # far from the origin, where squares cancel
    query = [shift + torch.randn(c, *g, generator=generator) for c, g in zip(channels, grids, strict=False)]
    gallery = [shift + torch.randn(40, c, *g, generator=generator) for c, g in zip(channels, grids, strict=False)]
    torch.testing.assert_close(
        squared_distances(query, gallery, k, window=window), obvious(query, gallery, k, window), rtol=1e-4, atol=1e-4
    )


def test_a_gallery_that_the_bound_cannot_prune_is_searched_to_the_end():
    """The deeper layer says nothing: every cell stays open until all have been tried."""
    generator = torch.Generator().manual_seed(2)
    query = [torch.randn(4, 6, 6, generator=generator), torch.zeros(3, 3, 3)]
    gallery = [torch.randn(60, 4, 6, 6, generator=generator), torch.zeros(60, 3, 3, 3)]
    torch.testing.assert_close(squared_distances(query, gallery), obvious(query, gallery, 1, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grids", [[(8, 8), (4, 4)], [(8, 12), (4, 4), (2, 2)], [(9, 9), (4, 4)], [(6, 6)]])
@pytest.mark.parametrize("window", [0, 1, 2, 50])
def test_a_corner_has_as_many_matches_as_it_says(grids, window):
    query, gallery = ([torch.zeros(*lead, 2, *grid) for grid in grids] for lead in ((), (1,)))
    most = matches_min(grids, window)
    assert squared_distances(query, gallery, most, window=window).isfinite().all()
    if most < grids[0][0] * grids[0][1]:
        assert squared_distances(query, gallery, most + 1, window=window)[0, 0, most].isinf()


@pytest.mark.parametrize(("neighbours", "window"), [(1000, 0), (60, 1)])
def test_more_neighbours_than_there_are_places_are_refused(neighbours, window):
    backbone = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())
    config = methods.make_config("spade", {"neighbours": neighbours, "window": window})
    with pytest.raises(FitError, match=f"fewer than {neighbours}"):
        methods.fit("spade", Images(good(2)), config, backbone=backbone, seed=0)


def test_scores_are_the_papers():
    backbone = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())
    config = methods.make_config("spade", {"images": 5, "sigma": 2.0})
    detector = methods.fit("spade", Images(good(12)), config, backbone=backbone, seed=0)
    kept = [each.half().float() for each in backbone(good(12)).values()]
    pooled = list(backbone(good(12)).values())[-1].mean(dim=(2, 3)).double()
    scored = detector.score(detector.embed(bad(2)))
    maps = list(backbone(bad(2)).values())
    for b in range(2):
        squares = (maps[-1][b].mean(dim=(1, 2)).double() - pooled).square().sum(dim=1)
        near = squares.topk(5, largest=False)
        torch.testing.assert_close(scored.image[b].double(), near.values.mean(), rtol=1e-4, atol=0)
        grid = obvious([m[b] for m in maps], [g[near.indices] for g in kept], 1, 0).squeeze(2)
        expected = smooth(upsample(grid[None], (64, 64)), 2.0)[0]
        torch.testing.assert_close(scored.map[b], expected, rtol=1e-3, atol=1e-4)
