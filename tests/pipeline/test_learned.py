import pytest
import torch

from pipeline import learned
from pipeline.commissioning import rotated
from pipeline.data import Images
from pipeline.errors import FitError, ShapeError


def turns(count, originals):
    """Even pictures whose values are the original's number."""
    pixels = torch.arange(originals, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return rotated(Images(pixels), count)


def assert_turns_are_together(images, fitted, held):
    """Two parts of the pixels of `images`, together all of them, have no original in common."""

    def originals(part):
        places = [next(i for i, pixels in enumerate(images.pixels) if torch.equal(pixels, each)) for each in part]
        return [images.originals[place] for place in places]

    assert not set(originals(fitted)) & set(originals(held))
    assert sorted(originals(fitted) + originals(held)) == sorted(images.originals)


def test_goods_are_split_without_overlap():
    train, held = learned.split(turns(1, 20), 0.1, 3)
    assert sorted(torch.cat([train, held]).tolist()) == list(range(20))
    assert len(held) == 2
    assert [len(part) for part in learned.split(turns(1, 2), 0.9, 0)] == [1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_without_turns_the_split_is_by_picture(seed):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    train, held = learned.split(turns(1, 20), 0.1, seed)
    assert torch.equal(train, order[2:].sort().values)
    assert torch.equal(held, order[:2].sort().values)


@pytest.mark.parametrize("seed", range(5))
def test_turns_of_one_picture_are_not_split(seed):
    images = turns(4, 10)
    train, held = (images.pixels[places][:, 0, 0, 0].tolist() for places in learned.split(images, 0.2, seed))
    assert len(held) == 4 * 2
    assert len(train) == 4 * 8
    assert not set(train) & set(held)


def test_turns_of_one_picture_alone_are_too_few():
    with pytest.raises(FitError, match="at least 2 good pictures"):
        learned.split(turns(4, 1), 0.1, 0)


def test_images_know_which_are_turns_of_one_picture():
    images = turns(3, 2)
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert images.originals == (0, 1, 0, 1, 0, 1)
    assert rotated(images, 2).originals == images.originals * 2
    assert turns(1, 2).originals == ()
    with pytest.raises(ShapeError, match="2 images must have as many originals, not 3"):
        Images(turns(1, 2).pixels, (0, 1, 2))
