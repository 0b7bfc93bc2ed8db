"""Pictures that come again are not run again, and their maps are the same."""

import torch

from pipeline import threads
from pipeline.backbone import resolve
from pipeline.remembered import Remembered


class Counting:
    """An engine that counts what it runs."""

    def __init__(self):
        self.run = 0

    def __call__(self, images):
        self.run += len(images)
        return [images.float().mean(dim=(2, 3), keepdim=True), images[:, :1].float()]


def pictures(b, seed=0):
    return torch.randint(0, 256, (b, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_only_new_pictures_are_run_and_all_come_back_in_order():
    counting, plain = Counting(), Counting()
    engine, images = Remembered(counting, 10**6), pictures(5)
    engine(images[:3])
    asked = images[[4, 1, 1, 3, 0]]
    assert all(torch.equal(a, b) for a, b in zip(engine(asked), plain(asked), strict=True))
    assert counting.run == 5
    assert [len(each) for each in engine(images[:0])] == [0, 0]


def test_what_was_seen_longest_ago_is_forgotten_first():
    counting = Counting()
    each = sum(m[0].nbytes for m in counting(pictures(1)))
    engine = Remembered(counting, 2 * each)
    one, two, three = pictures(3).split(1)
    for images in (one, two, one, three):
        engine(images)
    counting.run = 0
    engine(one)
    engine(three)
    assert counting.run == 0
    engine(two)
    assert counting.run == 1


def test_who_gets_maps_may_change_them():
    engine, images = Remembered(Counting(), 10**6), pictures(2)
    before = [each.clone() for each in engine(images)]
    for each in engine(images):
        each.zero_()
    assert all(torch.equal(a, b) for a, b in zip(engine(images), before, strict=True))


def test_a_backbone_that_remembers_sees_the_same():
    net = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    remembering = net.remembering(10**7)
    assert remembering.spec == net.spec
    for _ in range(2):
        for layer, each in remembering(images).items():
            torch.testing.assert_close(each, net(images)[layer])


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with threads.limited(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
