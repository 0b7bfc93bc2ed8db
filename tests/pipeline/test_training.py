import pytest
import torch
from torch import nn

from pipeline import training
from pipeline.errors import ConfigError, FitError
from pipeline.natural import NaturalPictures
from pipeline.training import Checkpoint, HeldOut, train


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))


def fit(model, steps=200, *, checkpoint=None, held_out=None, until=None):
    """y = 3 x with noisy x; raises KeyboardInterrupt at step `until`."""

    def loss(step, generator):
        if step == until:
            raise KeyboardInterrupt
        x = torch.randn(16, generator=generator)
        return (model.slope * x - 3 * x).square().mean()

    return train(
        model,
        loss,
        steps=steps,
        optimiser=torch.optim.Adam(model.parameters(), lr=1),
        rate=training.one_cycle(0.1),
        seed=0,
        held_out=held_out,
        checkpoint=checkpoint,
    )


def test_it_learns_and_says_so():
    model = Line()
    done = fit(model)
    assert done.steps == 200
    assert abs(model.slope.item() - 3) < 0.02
    assert done.loss < 1e-2
    assert not model.training


def test_a_cut_training_goes_on_as_if_it_had_not_been_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE_EVERY_S", -1.0)  # after each step
    whole = Line()
    fit(whole)
    cut = Line()
    kept = Checkpoint(tmp_path / "a", "model", key="k")
    with pytest.raises(KeyboardInterrupt):
        fit(cut, checkpoint=kept, until=77)
    resumed = Line()
    assert fit(resumed, checkpoint=kept).steps == 200
    assert torch.equal(whole.slope, resumed.slope)
    finished = Line()
    fit(finished, checkpoint=kept, until=0)  # nothing is left to do
    assert torch.equal(whole.slope, finished.slope)


def test_another_trainings_checkpoint_is_neither_gone_on_with_nor_lost(tmp_path):
    one, two = (Checkpoint(tmp_path, "model", key) for key in ("one", "two"))
    fit(Line(), checkpoint=one)
    with pytest.raises(KeyboardInterrupt):
        fit(Line(), checkpoint=two, until=0)
    fit(Line(), checkpoint=two)
    fit(Line(), checkpoint=one, until=0)  # nothing is left to do


def test_a_checkpoint_of_another_key_under_this_ones_name_is_not_gone_on_with(tmp_path):
    one, two = (Checkpoint(tmp_path, "model", key) for key in ("one", "two"))
    fit(Line(), checkpoint=one)
    one.path.rename(two.path)
    with pytest.raises(KeyboardInterrupt):
        fit(Line(), checkpoint=two, until=0)


def test_a_damaged_checkpoint_is_none(tmp_path):
    kept = Checkpoint(tmp_path, "model", key="k")
    kept.path.write_bytes(b"\x08\0\0\0\0\0\0\0{not json")
    model = Line()
    fit(model, checkpoint=kept)
    assert abs(model.slope.item() - 3) < 0.02


def test_it_stops_early_with_the_best_weights():
    model = Line()
    seen = []

    def held_out():  # best at slope 1, which the training passes
        seen.append(float(model.slope.detach()))
        return abs(seen[-1] - 1)

    done = fit(model, held_out=HeldOut(loss=held_out, every=5, patience=3))
    assert done.steps < 200
    assert model.slope.item() == min(seen, key=lambda slope: abs(slope - 1))
    assert len(seen) - 1 - seen.index(model.slope.item()) == 3


def test_a_loss_that_is_not_finite_ends_it():
    model = Line()
    with pytest.raises(FitError, match="the loss is nan at step 0"):
        train(
            model,
            lambda _step, _generator: model.slope * torch.nan,
            steps=3,
            optimiser=torch.optim.SGD(model.parameters(), lr=1),
            rate=training.constant(1),
            seed=0,
        )


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with training.seeded(5):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with training.seeded(5):
        assert torch.equal(torch.rand(2), first)


def test_seeded_is_torchs_own_seed():
    torch.manual_seed(5)
    expected = torch.rand(2)
    with training.seeded(5):
        assert torch.equal(torch.rand(2), expected)


def test_seeded_leaves_no_seed_waiting_for_a_gpu(monkeypatch):
    waiting = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", waiting.append)
    with training.seeded(5):
        torch.rand(2)
    assert not waiting


def test_rates():
    assert training.constant(2)(0.7) == 2
    assert [training.dropped(1, 0.95)(x) for x in (0, 0.94, 0.95)] == [1, 1, 0.1]
    assert training.cosine(2)(0) == 2
    assert training.cosine(2)(1) == pytest.approx(0)
    cycle = training.one_cycle(3)
    assert cycle(0) == pytest.approx(0.12)
    assert cycle(0.3) == pytest.approx(3)
    assert cycle(1) == pytest.approx(0)


def test_natural_pictures_are_the_same_each_time_and_no_two_alike():
    drawn = NaturalPictures.of_folder("", seed=0)
    first = drawn.batch(range(6), (48, 64))
    assert tuple(first.shape) == (6, 3, 48, 64)
    assert torch.equal(first, NaturalPictures.of_folder("", seed=0).batch(range(6), (48, 64)))
    assert len({bytes(each.numpy().tobytes()) for each in first}) == 6
    assert first.float().std(dim=(1, 2, 3)).min() > 5


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no picture in"):
        NaturalPictures.of_folder(str(tmp_path), seed=0)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"a\.jpg is no readable picture"):
        NaturalPictures.of_folder(str(tmp_path), seed=0).crop(0, (8, 8))
