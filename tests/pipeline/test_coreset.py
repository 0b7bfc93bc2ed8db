import pytest
import torch

from pipeline.coreset import select
from pipeline.errors import FitError
from tests import interpreted


def greedy(points, starts, count):
    """The definition, in float64, every distance computed afresh."""
    points = points.double()
    farness = torch.cdist(points, points[starts]).mean(dim=1)
    chosen = []
    for _ in range(count):
        chosen.append(int(farness.argmax()))
        farness = torch.minimum(farness, (points - points[chosen[-1]]).norm(dim=1))
        farness[chosen] = -1
    return chosen


def test_equals_the_definition_without_projection():
    features = torch.rand(300, 16, generator=torch.Generator().manual_seed(0))
    starts = torch.randperm(300, generator=torch.Generator().manual_seed(5))[:10]
    assert select(features, 60, seed=5).tolist() == greedy(features, starts, 60)


def test_equals_the_definition_with_projection():
    features = torch.rand(200, 64, generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(7)
    matrix = torch.randn(64, 8, generator=g)
    starts = torch.randperm(200, generator=g)[:10]
    assert select(features, 40, seed=7, projection=8).tolist() == greedy(features @ matrix / 8**0.5, starts, 40)


def test_a_seed_gives_the_same_rows_and_leaves_the_input_alone():
    features = torch.rand(400, 200, generator=torch.Generator().manual_seed(2))
    copy, state = features.clone(), torch.random.get_rng_state()
    first = select(features, 50, seed=3)
    assert torch.equal(first, select(features, 50, seed=3))
    assert not torch.equal(first, select(features, 50, seed=4))
    assert torch.equal(features, copy)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.dtype == torch.int64


def test_rare_clusters_are_kept():
    g = torch.Generator().manual_seed(3)
    centres = 10 * torch.randn(40, 256, generator=g)
    sizes = torch.tensor([2, 60]).repeat(20)
    cluster = torch.arange(40).repeat_interleave(sizes)
    features = centres[cluster] + torch.randn(len(cluster), 256, generator=g)
    kept = select(features, 44, seed=0)
    assert set(cluster[kept].tolist()) == set(range(40))


def test_rows_are_distinct_even_if_all_are_equal():
    assert sorted(select(torch.ones(12, 4), 12, seed=0).tolist()) == list(range(12))


def test_small_sets_and_bad_counts():
    features = torch.rand(3, 4)
    assert sorted(select(features, 3, seed=0).tolist()) == [0, 1, 2]
    for count in (0, 4):
        with pytest.raises(FitError, match=f"{count} rows cannot be taken from 3"):
            select(features, count, seed=0)


def test_progress_ends_at_the_end():
    calls = []
    select(torch.rand(500, 8), 250, seed=0, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("coreset", 250, 250)
    assert len(calls) == 100
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


INTERPRETED = """
import json
import torch
from pipeline.fused_greedy import farthest_in_turn

told = []
for n, p, count in ((300, 16, 140), (70, 8, 70), (5, 4, 5), (64, 1, 3)):
    points = torch.randn(n, p, generator=torch.Generator().manual_seed(n)).half()
    double = points.double()
    farness, wanted = double.square().sum(dim=1), []
    for _ in range(count):
        wanted.append(int(farness.argmax()))
        farness = torch.minimum(farness, (double - double[wanted[-1]]).square().sum(dim=1))
        farness[wanted] = -torch.inf
    heard = []
    chosen = farthest_in_turn(points, points.float().square().sum(dim=1), count, lambda *said: heard.append(said))
    told.append([chosen.tolist() == wanted, heard[-1] == ("coreset", count, count)])
told.append(sorted(farthest_in_turn(torch.ones(70, 4).half(), torch.ones(70), 70).tolist()) == list(range(70)))
print(json.dumps(told))
"""


def test_the_kernels_choices_are_the_definitions():
    assert interpreted.run(INTERPRETED) == [[True, True]] * 4 + [True]
