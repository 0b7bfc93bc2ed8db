"""The nearest row of a bank, exactly, from products of float16: what rounding could have hidden is looked at anew."""

import math

import numpy as np
import pytest
import torch

from pipeline import rounded
from pipeline.errors import ShapeError
from pipeline.neighbours import nearest
from pipeline.rounded import RoundedBank, by_product
from tests import interpreted


def rand(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def whole_way(monkeypatch):
    """How many queries were settled without a proposal."""
    asked = []

    def counted(queries, *args, **options):
        asked.append(len(queries))
        return nearest(queries, *args, **options)

    monkeypatch.setattr(rounded, "nearest", counted)
    return asked


def check(queries, bank):
    distances, indices = RoundedBank(bank, by_product).nearest(queries)
    truth = (queries.double().unsqueeze(1) - bank.double()).square().sum(dim=2)
    assert distances.shape == indices.shape == (len(queries), 1)
    assert (distances.dtype, indices.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(distances[:, 0].double(), truth.amin(dim=1), rtol=5e-6, atol=0)
    torch.testing.assert_close(truth.gather(1, indices)[:, 0], truth.amin(dim=1), rtol=5e-6, atol=0)
    return indices


def test_equals_brute_force_and_proposals_settle_most(whole_way):
    bank = rand(400, 96, 0)
    check(bank[:80] + 0.3 * rand(80, 96, 1), bank)
    assert sum(whole_way) < 8


def test_what_is_settled_by_the_product_is_counted(whole_way):
    bank = rand(400, 96, 0)
    queries = torch.cat([bank[:80] + 0.3 * rand(80, 96, 1), bank[:1] + 0.5 * (bank[1:2] - bank[:1])])
    made = RoundedBank(bank, by_product)
    settled = made.settles(queries)
    made.nearest(queries)
    assert whole_way == [int((~settled).sum())]
    assert not settled[80], "two rows are as near"


def test_far_from_the_origin_digits_are_kept(whole_way):
    bank = 1000 + rand(400, 96, 2)
    check(bank[:80] + 0.3 * rand(80, 96, 3), bank)
    assert sum(whole_way) < 8


@pytest.mark.parametrize("size", [1e-15, 1e-6, 1.0, 1e6, 1e15])
def test_any_scale(size, whole_way):
    bank = rand(300, 64, 4) * size
    check(bank[:50] + 0.3 * size * rand(50, 64, 5), bank)
    assert sum(whole_way) < 8


def test_what_rounding_hides_is_found(whole_way):
    # Rows apart by less than float16 resolves: proposals are wrong, and none of them may be believed.
    bank = rand(1, 64, 6) + 1e-4 * rand(200, 64, 7)
    bank = torch.cat([bank, 50 * rand(100, 64, 8)])
    queries = bank[:100] + 1e-5 * rand(100, 64, 9)
    indices = check(queries, bank)
    half = RoundedBank(bank, by_product)
    proposed = half._proposed(queries)[1]
    assert (proposed != indices[:, 0]).any()
    assert whole_way


def test_where_a_proposal_is_believed_rounding_cannot_have_hidden_a_nearer_row():
    # Values just between two of float16's are rounded by the most that can be, all to one side or the other.
    g = torch.Generator().manual_seed(10)
    step = 2.0**-10
    signs = torch.randint(0, 2, (300, 48), generator=g) * 2 - 1
    bank = signs * (1 + step * (torch.randint(0, 400, (300, 48), generator=g) + 0.49))
    queries = bank[torch.randint(0, 300, (200,), generator=g)] * (1 + 0.2 * torch.rand(200, 1, generator=g))
    check(queries + 0.9 * rand(200, 48, 11), bank)


def test_queries_beyond_float16_and_what_is_no_number(whole_way):
    bank = rand(50, 16, 12)
    check(rand(5, 16, 13) * 1e6, bank)
    assert whole_way == [5]
    queries = rand(3, 16, 14)
    queries[1, 4] = torch.nan
    distances, indices = RoundedBank(bank, by_product).nearest(queries)
    assert distances.isfinite()[:, 0].tolist() == [True, False, True]
    assert 0 <= int(indices.min()) <= int(indices.max()) < 50


def bounds_and_truth(queries, bank):
    """Lower bounds with sums in float64, what they bound, and what they may lie below it; (N, M)."""
    seen = []
    made = RoundedBank(bank, lambda *given: seen.append(given) or by_product(*given))
    sure = made._proposed(queries)[2]
    ((asked, rows, norms, spreads, lengths),) = seen
    spread = spreads.double().outer(lengths.double())
    there, here = (made._scale * (each.double() - made._mean.double()) for each in (bank, queries))
    truth = there.square().sum(1) - 2 * here @ there.T
    return norms.double() - 2 * asked.double() @ rows.double().T - spread, truth, spread, sure


def along_few_axes(n, d, seed):
    """Rows that vary most along few axes, as features do."""
    axes = torch.linalg.qr(rand(d, d, 40))[0] * 0.7 ** torch.arange(d).clamp(max=40)
    return 20 * rand(n, d, seed) @ axes.T + 0.02 * rand(n, d, seed + 1)


@pytest.fixture
def exact_sums(monkeypatch):
    """Nothing is allowed for what sums err by: the test's own do not."""
    monkeypatch.setattr(rounded, "_sums", lambda _: 0.0)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("rows", [rand, along_few_axes])
def test_bounds_are_below_whatever_the_sums_may_err_by(size, rows, exact_sums):
    bank = size * (rows(2000, 64, 20) + torch.tensor([30.0, *[0.0] * 63]))
    bounds, truth, _, sure = bounds_and_truth(bank[:300] + 0.6 * size * rand(300, 64, 22), bank)
    assert bool((bounds <= truth).all())
    assert float(sure.double().mean()) > 0.95


def test_rows_of_one_length_and_of_many(exact_sums):
    # Next to the mean float16 has no digits left, far from it a query needs them all.
    bank = along_few_axes(500, 64, 23) * 10.0 ** torch.linspace(-6, 0, 500).unsqueeze(1)
    bounds, truth, _, _ = bounds_and_truth(torch.cat([bank[::5], 100 * bank[-50:]]), bank)
    assert bool((bounds <= truth).all())


def test_where_float16_takes_from_queries_alone(exact_sums, monkeypatch):
    # The bank's values are float16's own, the queries' lie just below the middle between two of them.
    monkeypatch.setattr(rounded, "_AXES", 0)
    signs = torch.randint(0, 2, (64, 48), generator=torch.Generator().manual_seed(26)) * 2.0 - 1
    bounds, truth, _, _ = bounds_and_truth(signs * (1 + 0.49 * 2.0**-10), torch.cat([signs, -signs]))
    assert bool((bounds <= truth).all())


def test_rows_next_to_the_mean_of_which_float16_keeps_no_digits(exact_sums):
    near, far = 1e-6 * rand(50, 8, 27), rand(50, 8, 28)
    bank = torch.cat([near, far, -near, -far])
    bounds, truth, _, _ = bounds_and_truth(3 * far, bank)
    assert bool((bounds <= truth).all())


def cut_off(queries, bank):
    """Products (N, M) as the coarsest tensor cores sum them: four at a time, what is below float32's unit cut off."""
    q, b = queries.double().numpy(), bank.double().numpy()
    total = np.zeros((len(q), len(b)))
    for at in range(0, q.shape[1], 4):
        added = np.stack([total, *(np.outer(q[:, i], b[:, i]) for i in range(at, at + 4))])
        unit = 2.0 ** (np.frexp(np.abs(added).max(axis=0))[1] - 24)
        total = (np.trunc(added / unit) * unit).sum(axis=0)
        unit = 2.0 ** (np.frexp(total)[1] - 24)
        total = np.trunc(total / unit) * unit
    return torch.from_numpy(total)


def test_sums_of_many_products_are_allowed_for(monkeypatch):
    # Values are float16's own, so that sums alone err; of a row with itself all that is cut off adds up.
    monkeypatch.setattr(rounded, "_AXES", 0)
    rows = torch.randint(-1023, 1024, (20, 4096), generator=torch.Generator().manual_seed(33)).float()
    bank = torch.cat([rows, -rows])
    bounds, truth, _, _ = bounds_and_truth(rows[:5], bank)
    made = RoundedBank(bank, by_product)
    asked = made._split(rows[:5]).h
    assert bool((bounds + 2 * (asked.double() @ made._bank.double().T - cut_off(asked, made._bank)) <= truth).all())


@pytest.mark.parametrize("rows", [rand, along_few_axes])
def test_bounds_are_below_with_sums_that_are_cut_off(rows):
    bank = rows(200, 1024, 29)
    made = RoundedBank(bank, by_product)
    bounds, truth, _, _ = bounds_and_truth(bank[:20], bank)  # of a row with itself all that is cut off adds up
    split = made._split(bank[:20])
    asked = torch.cat([split.h, split.t2, split.t1, split.t1], dim=1)
    whole = asked.double() @ made._bank.double().T
    cut = cut_off(asked, made._bank)
    assert float((whole - cut).abs().max()) > 0
    assert bool((bounds + 2 * (whole - cut) <= truth).all())


def test_most_bounds_are_much_closer_than_float16_alone_allows():
    bank = along_few_axes(2000, 256, 24)
    _, _, spread, _ = bounds_and_truth(bank[:300], bank)
    lengths = torch.linalg.vector_norm(bank - bank.mean(dim=0), dim=1).double()
    scale = RoundedBank(bank, by_product)._scale
    alone = 2 * 2.0**-11 * scale**2 * lengths[:300].outer(lengths)
    assert float((spread / alone).median()) < 0.1


def test_bounds_are_no_lower_than_they_must_be(exact_sums, monkeypatch):
    # All that rounding takes adds up, and is that share of values for which one bound of both losses is closest.
    monkeypatch.setattr(rounded, "_AXES", 0)
    signs = torch.randint(0, 2, (64, 48), generator=torch.Generator().manual_seed(22)) * 2 - 1
    rows = signs * (1 + 0.25 * 2.0**-10)
    bounds, truth, spread, _ = bounds_and_truth(rows, torch.cat([rows, -rows]))
    assert bool((bounds <= truth).all())
    assert float(((truth - bounds) / spread).min()) < 0.25


def test_what_two_float16_lack_is_within_what_is_allowed_for_it(exact_sums):
    # Rows along one axis, so that nothing is in y.
    bank = torch.ones(200, 16) * (1 + torch.rand(200, 1, generator=torch.Generator().manual_seed(31)))
    bounds, truth, spread, _ = bounds_and_truth(bank, bank)
    assert bool((bounds <= truth).all())
    assert float(((truth - bounds) / spread).min()) > 0.3


def test_products_of_less_than_float32_propose_nothing(whole_way):
    bank = rand(300, 32, 32)
    made = RoundedBank(bank, by_product)
    torch.set_float32_matmul_precision("high")
    try:
        made.nearest(bank[:9])
    finally:
        torch.set_float32_matmul_precision("highest")
    assert whole_way == [9]


def test_a_query_too_long_for_float16_along_one_axis_is_left(whole_way):
    bank = torch.cat([rand(200, 8, 25), torch.zeros(200, 56)], dim=1)
    queries = torch.zeros(4, 64)
    queries[:, 0] = torch.tensor([1e3, -1e3, 1e5, -1e5])
    check(queries, bank)
    assert whole_way == [2]


def test_sums_that_are_cut_off_stay_within_their_error():
    g = torch.Generator().manual_seed(23)
    for dim in (64, 1024, 8192):
        q, b = (torch.rand(dim, generator=g) for _ in range(2))  # nothing cancels: the worst for sums that only lose
        total = 0.0
        for four in (q.double() * b.double()).split(4):
            added = [total, *four.tolist()]
            unit = 2.0 ** (math.frexp(max(added))[1] - 24)  # what is below it is cut off, of each, and of the sum
            total = sum(math.floor(each / unit) for each in added) * unit
            unit = 2.0 ** (math.frexp(total)[1] - 24)
            total = math.floor(total / unit) * unit
        lost = float(q.double() @ b.double()) - float(total)
        assert lost <= rounded._sums(dim) * float(q.norm() * b.norm())


@pytest.mark.parametrize("bank", [torch.ones(20, 8), torch.zeros(3, 8), torch.ones(1, 8)])
def test_banks_of_equal_rows(bank):
    distances, _ = RoundedBank(bank, by_product).nearest(torch.ones(4, 8))
    torch.testing.assert_close(distances[:, 0], torch.full((4,), 8.0 * float(bank[0, 0] == 0)))


@pytest.mark.parametrize("block", [1, 7 * 4 * 30, 1 << 30])
def test_proposals_do_not_depend_on_blocks(block, monkeypatch):
    monkeypatch.setattr(rounded, "_BLOCK_BYTES", block)
    queries, bank = rand(17, 16, 17).half(), rand(30, 16, 18).half()
    norms = bank.float().square().sum(dim=1)
    spreads, lengths = torch.rand(17), torch.rand(30)
    least, second, rows = by_product(queries, bank, norms, spreads, lengths)
    bounds = norms - 2 * queries.float() @ bank.float().T - spreads.outer(lengths)
    two = bounds.topk(2, dim=1, largest=False)
    torch.testing.assert_close(torch.stack([least, second], dim=1), two.values)
    assert torch.equal(rows, two.indices[:, 0])


def test_no_queries_and_what_does_not_fit():
    bank = RoundedBank(rand(30, 16, 15), by_product)
    assert bank.nearest(torch.zeros(0, 16))[0].shape == (0, 1)
    with pytest.raises(ShapeError, match=r"\(N, D\) and \(M, D\)"):
        bank.nearest(torch.zeros(4, 15))


def test_a_cpu_has_no_such_bank():
    assert RoundedBank.of(rand(5000, 16, 16)) is None


INTERPRETED = """
import json
import torch
from pipeline import fused
from pipeline.rounded import RoundedBank

told = []
for n, m, d in ((70, 300, 72), (1, 129, 8), (3, 1, 64), (65, 128, 130)):
    g = torch.Generator().manual_seed(n)
    bank, queries = torch.randn(m, d, generator=g), torch.randn(n, d, generator=g)
    half, norms = bank.half(), bank.square().sum(dim=1)
    spreads, lengths = torch.rand(n, generator=g), torch.rand(m, generator=g)
    least, second, row = fused.least_two(queries.half(), half, norms, spreads, lengths)
    values = norms - 2 * queries.half().float() @ half.float().T - spreads.outer(lengths)
    two = torch.cat([values, torch.full((n, 1), torch.inf)], dim=1).topk(2, dim=1, largest=False).values
    truth = torch.cdist(queries.double(), bank.double()).argmin(dim=1)
    told.append({
        "least": torch.allclose(least, two[:, 0], rtol=1e-5, atol=1e-4),
        "second": torch.allclose(second, two[:, 1], rtol=1e-5, atol=1e-4),
        "row": torch.equal(row, values.argmin(dim=1)),
        "settled": torch.equal(RoundedBank(bank, fused.least_two).nearest(queries)[1][:, 0], truth),
    })
bank = torch.tensor([[1.0, 1.0], [100.0, -1.0], [-101.0, 0.0]])
far = torch.tensor([[1e5, 1e5], [1.0, 0.9], [torch.nan, 0.0]])
found = RoundedBank(bank, fused.least_two).nearest(far)[1][:2, 0]
told.append(torch.equal(found, torch.cdist(far[:2].double(), bank.double()).argmin(dim=1)))
print(json.dumps(told))
"""


def test_the_kernel_gives_the_least_two_of_each_row():
    exact = {"least": True, "second": True, "row": True, "settled": True}
    assert interpreted.run(INTERPRETED) == [exact] * 4 + [True]


def test_neighbours_of_the_banks_own_rows_are_known_beforehand():
    rows = rand(60, 12, 30)
    made, found = RoundedBank(rows, by_product, 5), torch.tensor([3, 3, 59])
    truth = torch.cdist(rows[found].double(), rows.double()).topk(4, largest=False).indices
    assert torch.equal(made.around(found, 4), truth)
    with pytest.raises(ShapeError, match="6 neighbours asked of a bank that knows 5 of each row's"):
        made.around(found, 6)
