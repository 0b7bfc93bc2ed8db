import pytest
import torch

from pipeline.errors import ShapeError
from pipeline.neighbours import nearest, squared_norms


def brute(queries, bank, k):
    squares = (queries.double().unsqueeze(1) - bank.double().unsqueeze(0)).square().sum(dim=2)
    return squares.topk(k, dim=1, largest=False)


def check(queries, bank, k, **options):
    distances, indices = nearest(queries, bank, k, **options)
    truth, _ = brute(queries, bank, k)
    assert distances.dtype == torch.float32
    assert indices.dtype == torch.int64
    assert distances.shape == indices.shape == (queries.shape[0], k)
    assert (distances >= 0).all()
    torch.testing.assert_close(distances.double(), truth, rtol=5e-6, atol=0)
    chosen = (queries.double().unsqueeze(1) - bank.double()[indices]).square().sum(dim=2)
    torch.testing.assert_close(chosen, truth, rtol=5e-6, atol=0)
    assert all(len(set(row.tolist())) == k for row in indices)
    return distances, indices


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("block", [None, 1, 7])
@pytest.mark.parametrize("near_ties", [False, True])
def test_equals_brute_force(k, block, near_ties):
    g = torch.Generator().manual_seed(k)
    queries, bank = torch.rand(50, 96, generator=g), torch.rand(200, 96, generator=g)
    _, indices = check(queries, bank, k, block=block, near_ties=near_ties)
    assert torch.equal(indices, brute(queries, bank, k)[1])


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("near_ties", [False, True])
def test_near_neighbours_keep_their_digits(k, near_ties):
    # Far from the origin and close together: the matrix product alone loses every digit here.
    g = torch.Generator().manual_seed(0)
    bank = 100 + torch.randn(300, 64, generator=g) * 1e-3
    queries = bank[:40] + torch.randn(40, 64, generator=g) * 1e-4
    check(queries, bank, k, near_ties=near_ties)


@pytest.mark.parametrize("block", [None, 64])
@pytest.mark.parametrize("k", [1, 9])
def test_a_row_of_the_bank_is_at_zero_from_itself(k, block):
    g = torch.Generator().manual_seed(1)
    bank = 30 * torch.rand(500, 128, generator=g)
    bank[100:130] = bank[100] + torch.randn(30, 128, generator=g) * 1e-5  # more near ties than the shortlist holds
    distances, indices = nearest(bank, bank, k, block=block)
    assert torch.equal(distances[:, 0], torch.zeros(500))
    assert torch.equal(indices[:, 0], torch.arange(500))


def test_duplicates_and_whole_bank():
    bank = torch.ones(20, 8)
    distances, indices = nearest(torch.ones(3, 8), bank, 9)
    assert (distances == 0).all()
    assert all(len(set(row.tolist())) == 9 for row in indices)
    g = torch.Generator().manual_seed(2)
    check(torch.rand(5, 8, generator=g), torch.rand(9, 8, generator=g), 9)


def test_lower_matmul_precision_changes_nothing():
    g = torch.Generator().manual_seed(3)
    queries, bank = torch.rand(30, 64, generator=g), torch.rand(90, 64, generator=g)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        check(queries, bank, 3)
    finally:
        torch.set_float32_matmul_precision(before)


def test_kept_norms_and_no_queries():
    g = torch.Generator().manual_seed(4)
    queries, bank = torch.rand(11, 16, generator=g), torch.rand(40, 16, generator=g)
    kept = nearest(queries, bank, 2, bank_norms=squared_norms(bank))
    for ours, theirs in zip(kept, nearest(queries, bank, 2), strict=True):
        assert torch.equal(ours, theirs)
    assert nearest(queries[:0], bank, 2)[0].shape == (0, 2)


def test_inputs_are_left_alone():
    g = torch.Generator().manual_seed(5)
    queries, bank = torch.rand(6, 16, generator=g), torch.rand(40, 16, generator=g)
    copies = queries.clone(), bank.clone()
    nearest(queries, bank, 9)
    assert torch.equal(queries, copies[0])
    assert torch.equal(bank, copies[1])


def test_refuses_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(5, 2\)"):
        nearest(torch.zeros(4, 3), torch.zeros(5, 2))
    with pytest.raises(ShapeError, match="9 neighbours asked of a bank of 5"):
        nearest(torch.zeros(4, 3), torch.zeros(5, 3), 9)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("k", [1, 9])
def test_on_cuda(k):
    g = torch.Generator().manual_seed(6)
    queries, bank = torch.rand(500, 256, generator=g), torch.rand(900, 256, generator=g)
    distances, indices = nearest(queries.cuda(), bank.cuda(), k)
    truth, at = brute(queries, bank, k)
    torch.testing.assert_close(distances.cpu().double(), truth, rtol=5e-6, atol=0)
    assert torch.equal(indices.cpu(), at)
