"""A bound that rules rows out must never rule out the nearest."""

import pytest
import torch

from pipeline import integers, pruning
from pipeline.errors import ShapeError
from pipeline.integers import PackedRows, PlainRows
from pipeline.neighbours import nearest
from pipeline.pruning import PrunedBank


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "packed"])
def _small_banks(request, monkeypatch):
    """Searched with either product, whatever the processor: it makes them fast, not right."""
    monkeypatch.setattr(pruning, "ROWS_MIN", 50)
    monkeypatch.setattr(integers, "has_amx", lambda: request.param)


def features(count, *, dim=256, rank=20, noise=0.05, far=0.0, seed=0):
    """Rows with most of their variance in few directions, as patch features have; `far` from the origin."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, rank, generator=torch.Generator().manual_seed(99)))[0]
    spread = torch.linspace(3.0, 0.5, rank)
    return (
        far + (torch.randn(count, rank, generator=g) * spread) @ axes.T + noise * torch.randn(count, dim, generator=g)
    )


def brute(queries, bank):
    squares = torch.cdist(queries.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    return squares.min(dim=1)


def check(queries, bank):
    pruned = PrunedBank.of(bank)
    assert isinstance(pruned._rounded, PackedRows if integers.has_amx() else PlainRows)
    distances, indices = pruned.nearest(queries)
    truth, _ = brute(queries, bank)
    assert distances.shape == indices.shape == (len(queries), 1)
    assert (distances.dtype, indices.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(distances[:, 0].double(), truth, rtol=5e-6, atol=1e-12)
    chosen = (queries.double() - bank.double()[indices[:, 0]]).square().sum(dim=1)
    torch.testing.assert_close(chosen, truth, rtol=5e-6, atol=1e-12)
    return pruned, distances, indices


@pytest.mark.parametrize("far", [0.0, 100.0])
def test_equals_brute_force(far):
    bank = features(3000, far=far)
    pruned, *_ = check(features(500, far=far, seed=1), bank)
    assert pruned.axes == 31


def looked_at(monkeypatch, pruned, queries):
    """How many pairs were looked at: in few numbers, and in full."""
    few, full = [], []
    original = torch.Tensor.index_select

    def counted(self, dim, index):
        if self is pruned._short:
            few.append(len(index))
        if self is pruned.rows:
            full.append(len(index))
        return original(self, dim, index)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "index_select", counted)
        pruned.nearest(queries)
    return sum(few), sum(full)


def test_most_rows_are_ruled_out_by_integers_and_most_others_by_floats(monkeypatch):
    bank, queries = features(3000), features(200, seed=1)
    few, full = looked_at(monkeypatch, PrunedBank.of(bank), queries)
    assert len(queries) < full < few < 0.02 * len(queries) * len(bank)


def test_what_integers_rule_little_out_of_is_not_looked_at_pair_by_pair(monkeypatch):
    """A lamp that failed: all patches are far from everything, and no pair of them can be ruled out."""
    bank = features(3000)
    strange = 50 * torch.randn(300, 256, generator=torch.Generator().manual_seed(1))
    few, full = looked_at(monkeypatch, PrunedBank.of(bank), strange)
    assert few < 0.12 * len(strange) * len(bank)
    assert full <= 2 * len(strange) + few
    check(strange, bank)


def test_what_is_unlike_every_row_is_found_too():
    bank = features(2000)
    g = torch.Generator().manual_seed(5)
    strange = 20 * torch.randn(40, 256, generator=g)  # defects: no bound excludes much
    check(torch.cat([features(30, seed=2), strange]), bank)


@pytest.mark.parametrize("dim", [256, 1024])
def test_what_the_axes_leave_of_a_row_is_right_even_where_it_is_little(dim):
    """Beside the rounding of |x|^2, that is: a bound made of it could rule the nearest row out."""
    g = torch.Generator().manual_seed(dim)
    pruned = PrunedBank.of(features(2000, dim=dim))
    aside, mean = pruned._aside.double(), pruned._mean.double()
    axes = pruned._basis.double()  # (D, k + 1), of rank k: what is across `aside` has length 1 in both
    on = torch.randn(200, pruned.axes + 1, dtype=torch.float64, generator=g)
    on = torch.nn.functional.normalize(on - (on @ aside).unsqueeze(1) * aside, dim=1) @ axes.T
    beside = torch.randn(dim, dtype=torch.float64, generator=g)
    beside = torch.nn.functional.normalize(beside - axes @ (axes.T @ beside), dim=0)
    rows = (mean + on + 5e-4 * beside).float()
    centred = rows.double() - mean
    left = (centred - centred @ axes @ axes.T).norm(dim=1)
    short, lengths = pruned._shortened(rows)
    torch.testing.assert_close(short.double() @ aside, left, rtol=0, atol=1e-6)
    torch.testing.assert_close(lengths.double(), centred.norm(dim=1))


@pytest.mark.parametrize("spread", [1, 32])
def test_crowds_of_many_groups_and_of_few_go_the_whole_way(monkeypatch, spread):
    """A third of the bank at one place: in all groups of rows, or in a third of them."""
    bank = features(3200)
    groups = len(bank) // 32
    at = torch.arange(3200).view(32, groups)[:, : groups // 3].reshape(-1) if spread == 32 else torch.arange(1000)
    bank[at] = bank[7] + 1e-3 * torch.randn(len(at), 256, generator=torch.Generator().manual_seed(3))
    queries = bank[7] + 1e-3 * torch.randn(50, 256, generator=torch.Generator().manual_seed(4))
    few, _ = looked_at(monkeypatch, PrunedBank.of(bank), queries)
    assert few == 0
    check(queries, bank)


def test_products_of_less_than_float32_change_nothing(monkeypatch):
    bank, queries = features(1000), features(100, seed=1)
    pruned = PrunedBank.of(bank)
    truth = pruned.nearest(queries)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert PrunedBank.of(bank) is None
        assert torch.equal(pruned.nearest(queries)[1], truth[1])
        assert torch.equal(pruned.around(truth[1][:, 0], 1), truth[1])
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("value", [100.0, torch.inf, torch.nan])
def test_a_row_that_is_far_out_or_no_number_leaves_the_bank_unprepared(value):
    bank = features(600)
    bank[17] = value
    assert PrunedBank.of(bank) is None


def test_bounds_are_bounds():
    """What is ruled out is never nearer than what is not, by either bound and with nothing to spare."""
    bank, queries = features(3000, noise=0.3), features(300, seed=1, noise=0.3)
    pruned = PrunedBank.of(bank)
    true = torch.cdist(queries.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    asked = pruned._asked(queries)
    in_floats = torch.cdist(asked.short.double(), pruned._short.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert bool((in_floats <= true + 1e-5).all())
    squares = pruned._rounded.less_products(asked.whole)[:, : len(bank)].double() + asked.norms.double().unsqueeze(1)
    in_integers = squares.sqrt() * pruned._unit - asked.lost.double().unsqueeze(1)
    assert bool((in_integers <= in_floats + 1e-5).all())
    assert float((in_integers / true).median()) > 0.5  # and they rule something out


def test_where_integers_do_not_add_up_no_bank_is_prepared(monkeypatch):
    monkeypatch.setattr(integers, "multiplies", lambda: False)
    assert PrunedBank.of(features(100)) is None


def test_where_bounds_rule_little_out_the_whole_bank_is_searched():
    g = torch.Generator().manual_seed(0)
    check(torch.randn(50, 256, generator=g), torch.randn(600, 256, generator=g))


@pytest.mark.parametrize("noise", [0.05, 1.0])
@pytest.mark.parametrize("k", [1, 9, 3000])
def test_the_neighbours_of_a_row_are_found_in_order(noise, k):
    bank = features(3000, noise=noise)
    bank[40:44] = bank[500]
    asked = torch.tensor([0, 500, 40, 2999])
    found = PrunedBank.of(bank).around(asked, k)
    true = torch.cdist(bank[asked].double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert (found.shape, found.dtype) == ((4, k), torch.int64)
    assert all(len(set(row)) == k for row in found.tolist())
    torch.testing.assert_close(true.gather(1, found), true.sort(dim=1).values[:, :k], rtol=5e-6, atol=1e-12)


def around_looked_at(monkeypatch, bank, asked):
    """How many rows of the bank were gathered, and whether it was searched as a whole."""
    pruned, gathered, whole = PrunedBank.of(bank), [], []
    original = torch.Tensor.__getitem__

    def counted(self, index):
        if self is pruned.rows:
            gathered.append(len(index))
        return original(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "__getitem__", counted)
        patched.setattr(pruning, "nearest", lambda *given, **named: whole.append(given) or nearest(*given, **named))
        found = pruned.around(asked, 9)
    true = torch.cdist(bank[asked].double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(true.gather(1, found), true.sort(dim=1).values[:, :9], rtol=5e-6, atol=1e-12)
    return sum(gathered), len(whole)


def test_neighbours_are_found_without_looking_at_most_rows(monkeypatch):
    gathered, whole = around_looked_at(monkeypatch, features(3000), torch.arange(20))
    assert 2 * 9 * 20 < gathered < 0.1 * 20 * 3000
    assert not whole


def test_neighbours_in_what_bounds_rule_little_out_of_are_searched_once_for_all(monkeypatch):
    bank = torch.randn(600, 256, generator=torch.Generator().manual_seed(0))
    _, whole = around_looked_at(monkeypatch, bank, torch.arange(20))
    assert whole == 1


def test_more_neighbours_than_rows_are_refused_and_of_none_there_are_none():
    pruned = PrunedBank.of(features(200))
    assert pruned.around(torch.empty(0, dtype=torch.int64), 9).shape == (0, 9)
    with pytest.raises(ShapeError, match="201 neighbours asked of a bank of 200"):
        pruned.around(torch.tensor([3]), 201)


@pytest.mark.parametrize("factor", [1e-15, 1e15])
def test_very_small_and_very_large_features(factor):
    bank, queries = features(600) * factor, features(50, seed=1) * factor
    pruned, truth = PrunedBank.of(bank), brute(queries, bank).indices
    assert torch.equal(pruned.nearest(queries)[1][:, 0], truth)
    assert torch.equal(pruned.around(truth, 3)[:, 0], truth)


def test_what_is_not_finite_is_said_to_be_at_no_distance():
    queries = features(3)
    queries[1, 5] = torch.nan
    queries[2, 5] = torch.inf
    distances, _ = PrunedBank.of(features(600, seed=1)).nearest(queries)
    assert distances.isfinite()[:, 0].tolist() == [True, False, False]


def test_tiles_change_nothing(monkeypatch):
    bank, queries = features(700), features(90, seed=3)
    _, *whole = check(queries, bank)
    monkeypatch.setattr(pruning, "_TILE_BYTES", 1)
    monkeypatch.setattr(pruning, "_PAIRS_BYTES", 3000)
    _, *single = check(queries, bank)
    for a, b in zip(whole, single, strict=True):
        assert torch.equal(a, b)


def test_rows_of_the_bank_are_at_zero_and_the_first_of_equal_ones_is_named():
    bank = features(1000)
    bank[300:320] = bank[7]
    pruned = PrunedBank.of(bank)
    distances, indices = pruned.nearest(bank)
    assert torch.equal(distances[:, 0], torch.zeros(1000))
    expected = torch.arange(1000)
    expected[300:320] = 7
    assert torch.equal(indices[:, 0], expected)


def test_of_equal_rows_the_first_is_named_where_the_bound_guesses_a_later_one(monkeypatch):
    bank = features(1000)
    bank[32], bank[12] = bank[31], bank[7]  # of which groups of rows the later one lies before the other, and behind it
    queries = torch.cat([bank[[31, 7]], features(500, seed=1)])
    pruned, guessed = PrunedBank.of(bank), []
    original = torch.Tensor.index_select

    def seen(self, dim, index):
        if self is pruned.rows:
            guessed.append(index.clone())
        return original(self, dim, index)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "index_select", seen)
        indices = pruned.nearest(queries)[1][:, 0]
    assert guessed[0][:2].tolist() != [31, 7], "else this shows nothing"
    assert indices[:2].tolist() == [31, 7]
    assert torch.equal(indices, brute(queries, bank).indices)


def test_agrees_with_the_search_that_prunes_nothing():
    bank, queries = features(1500, seed=4), features(300, seed=5)
    theirs, ours = nearest(queries, bank), PrunedBank.of(bank).nearest(queries)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    "bank",
    [torch.ones(600, 256), features(40)],
    ids=["no variance", "few rows"],
)
def test_where_a_bound_would_not_pay_there_is_none(bank):
    assert PrunedBank.of(bank) is None


def test_no_queries_and_wrong_ones():
    pruned = PrunedBank.of(features(200))
    distances, indices = pruned.nearest(torch.empty(0, 256))
    assert distances.shape == indices.shape == (0, 1)
    with pytest.raises(ShapeError, match=r"\(N, D\) and \(M, D\)"):
        pruned.nearest(torch.zeros(3, 255))
