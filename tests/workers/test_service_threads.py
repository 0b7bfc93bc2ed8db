"""How many threads a worker computes with, and how many batches at once."""

import pytest
import torch

from pipeline import settings, threads
from workers import service


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_num_threads()
    yield
    threads.share(before, 1)


def given(**worker):
    return settings.Settings(worker=settings.Worker(**{"device": "cpu", **worker}))


@pytest.mark.parametrize(
    ("worker", "at_once", "each", "together"),
    [
        ({"threads": 1}, 1, 1, 1),
        ({"threads": 2}, 2, 1, 2),
        ({"threads": 5}, 2, 2, 5),
        ({"threads": 4, "at_once": 1}, 1, 4, 4),
        ({"threads": 8, "at_once": 4}, 4, 2, 8),
        ({"threads": 2, "at_once": 64}, 2, 1, 2),
        ({"threads": 4, "device": "cuda:7"}, 2, 2, 4),  # a GPU that is not there: each model says so, the worker runs
    ],
)
def test_threads_are_shared_out_and_never_more_than_there_may_be(worker, at_once, each, together):
    assert service._share(given(**worker)) == at_once
    assert torch.get_num_threads() == each
    assert threads.shared() == (together, at_once)
