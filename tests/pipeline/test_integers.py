"""Sums of small integers decide which rows of a bank are ruled out: one wrong sum could hide the nearest."""

import os
import subprocess
import sys

import pytest
import torch

from pipeline import integers
from pipeline.integers import LARGEST, QUERY_LARGEST, PackedRows, PlainRows

FAR = 2**30


@pytest.fixture(autouse=True)
def _ask_anew():
    integers._right.cache_clear()
    yield
    integers._right.cache_clear()


def drawn(queries, rows, numbers):
    g = torch.Generator().manual_seed(numbers)
    asked = torch.randint(-QUERY_LARGEST, QUERY_LARGEST + 1, (queries, numbers), generator=g)
    bank = torch.randint(-LARGEST, LARGEST + 1, (rows, numbers), generator=g)
    return asked.float(), bank.to(torch.int8), bank.square().sum(dim=1).int()


@pytest.mark.parametrize("kind", [PlainRows, PackedRows])
@pytest.mark.parametrize(("queries", "rows", "numbers"), [(1, 8, 1), (33, 96, 32), (784, 1664, 144), (7, 40, 800)])
def test_every_product_is_exact(kind, queries, rows, numbers):
    asked, bank, norms = drawn(queries, rows, numbers)
    norms[-1] = FAR
    found = kind(bank, norms).less_products(asked)
    truth = norms.double() - asked.double() @ bank.double().T
    assert found.shape == (queries, rows)
    assert torch.equal(found[:, :-1].double(), truth[:, :-1])
    assert bool((found[:, -1] > FAR / 2).all())  # that no query is to find


@pytest.mark.parametrize("kind", [PlainRows, PackedRows])
@pytest.mark.parametrize("numbers", [32, integers._PACKED_MOST])
def test_the_largest_sums_are_exact(kind, numbers):
    asked, bank, norms = drawn(2, 8, numbers)
    asked[0], asked[1] = QUERY_LARGEST, -QUERY_LARGEST
    bank[:4], bank[4:] = LARGEST, -LARGEST
    norms[:] = numbers * LARGEST**2
    found = kind(bank, norms).less_products(asked)
    near, far = (numbers * LARGEST * (LARGEST + sign * QUERY_LARGEST) for sign in (-1, 1))
    assert found.tolist() == [[near] * 4 + [far] * 4, [far] * 4 + [near] * 4]


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "DEFAULT"])
@pytest.mark.parametrize("kind", ["PlainRows", "PackedRows"])
def test_integers_add_up_on_every_processor(kind, isa):
    """Without VNNI two products are added in 16 bits: larger integers would overflow these."""
    program = f"from pipeline import integers; print(integers._right(integers.{kind}))"
    asked = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", program], env=asked, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "True"


def test_a_product_that_is_wrong_is_not_taken(monkeypatch):
    _, bank, norms = drawn(1, 64, 32)
    monkeypatch.setattr(integers, "has_amx", lambda: True)
    assert isinstance(integers.ready(bank, norms), PackedRows)
    integers._right.cache_clear()
    monkeypatch.setattr(PackedRows, "less_products", lambda self, queries: queries @ queries.T)
    assert isinstance(integers.ready(bank, norms), PlainRows)
    assert integers.multiplies()
    integers._right.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: torch.zeros(len(a), b.shape[1], dtype=torch.int32))
    assert not integers.multiplies()


def test_a_torch_that_has_no_product_is_not_asked_for_one(monkeypatch):
    def none(*_):
        raise RuntimeError

    monkeypatch.setattr(torch, "_int_mm", none)
    assert not integers.multiplies()


def test_rows_too_long_for_floats_are_multiplied_as_they_are(monkeypatch):
    monkeypatch.setattr(integers, "has_amx", lambda: True)
    _, bank, norms = drawn(1, 8, integers._PACKED_MOST + 1)
    assert isinstance(integers.ready(bank, norms), PlainRows)
