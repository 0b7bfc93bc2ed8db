"""Both searches are of the same bank, and give the same distances."""

import torch

from pipeline import synthetic
from tests.benchmarks import bank_search, figures


def test_a_set_has_a_row_for_each_bank_that_it_has_patches_for(tmp_path):
    synthetic.write_dataset(tmp_path / "data" / "caps", "cap", goods=3, test_goods=1, defects_each=1, seed=0)
    report = bank_search.run(tmp_path, ["caps"], ["goldline-s"], [100, 800, 10_000], repeats=2)
    small, bounded = report["rows"]
    assert (small["rows"], small["axes"], small["patches"], small["dim"]) == (100, None, 784, 384)
    assert (bounded["rows"], bounded["agreement"]) == (800, 1.0)
    assert bounded["axes"] > 0
    assert 0 <= bounded["left"] < 0.1
    assert 0 < bounded["ratio_low"] <= bounded["ratio"] <= bounded["ratio_high"]
    (table,) = figures._bank_search(report)
    assert table.count("\n") == 3


def test_what_disagrees_is_counted(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    bank, asked = torch.randn(50, 16, generator=generator), [torch.randn(8, 16, generator=generator)]
    bank[49] = bank[0]
    assert bank_search.measured("a", "b", bank, asked, repeats=1).agreement == 1.0
    ones, others = torch.zeros(8, 1, dtype=torch.int64), torch.tensor([0, 0, 0, 1, 49, 2, 0, 0]).unsqueeze(1)
    found = iter([ones, others])
    monkeypatch.setattr(bank_search, "nearest", lambda *_, **__: (None, next(found, ones)))
    assert bank_search.measured("a", "b", bank, asked, repeats=1).agreement == 0.75, "rows 0 and 49 are equal"
