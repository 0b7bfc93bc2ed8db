"""Batches in buckets: whatever fills a bucket, whoever calls, a picture has its own maps and keeps them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline import graphs

CPU = torch.device("cpu")


def pictures(b, h=8, w=12, seed=0):
    drawn = torch.randint(0, 256, (b, h, w, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return drawn.permute(0, 3, 1, 2)  # as `decode` makes them


def network(images):
    x = images.to(torch.bfloat16)
    return [x[:, :1] + x[:, 1:2], x.float().mean(dim=(2, 3), keepdim=True)]


class Recorder:
    """Records as CUDA does: a replay reads and overwrites the very same tensors."""

    def __init__(self, pause_s=0.0):
        self.batches = []
        self.pause_s = pause_s

    def __call__(self, run, images):
        self.batches.append(tuple(images.shape))
        maps = run(images)

        def replay():
            time.sleep(self.pause_s)
            for kept, new in zip(maps, run(images), strict=True):
                kept.copy_(new)
            time.sleep(self.pause_s)

        return replay, maps


def check(made, images):
    for ours, truth in zip(made, network(images), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, truth.float())


@pytest.mark.parametrize("record", [None, graphs.called, Recorder()], ids=["neither", "called", "recorded"])
def test_any_number_of_pictures_has_the_maps_of_the_network(record):
    replayed = graphs.Replayed(network, CPU, record)
    for count in (0, 1, 2, 3, 5, 8, 33, 64, 65, 131):
        images = pictures(count, seed=count)
        copy = images.clone()
        check(replayed(images), images)
        assert torch.equal(images, copy)


def test_what_fills_a_bucket_changes_nothing():
    conv = torch.nn.Conv2d(3, 4, 3, padding=1)
    replayed = graphs.Replayed(lambda images: [conv(images.float())], CPU, Recorder())
    few = pictures(5, seed=1)
    first = replayed(few)[0]
    replayed(pictures(8, seed=2))
    assert torch.equal(replayed(few)[0], first)


def test_later_pictures_leave_earlier_maps_alone():
    replayed = graphs.Replayed(network, CPU, Recorder())
    images = pictures(4, seed=1)
    made = replayed(images)
    replayed(pictures(4, seed=2))
    check(made, images)


def test_a_size_is_recorded_once_and_whole_when_it_first_comes():
    recorder = Recorder()
    replayed = graphs.Replayed(network, CPU, recorder)
    for count in (3, 64, 1, 70):
        replayed(pictures(count))
    assert [shape[0] for shape in recorder.batches] == [64, 32, 16, 8, 4, 2, 1]
    replayed(pictures(1, 16, 16))
    assert recorder.batches[7:] == [(count, 3, 16, 16) for count in (64, 32, 16, 8, 4, 2, 1)]


def test_large_pictures_have_small_buckets(monkeypatch):
    monkeypatch.setattr(graphs, "_PIXELS_MAX", 3 * 8 * 12)
    recorder = Recorder()
    replayed = graphs.Replayed(network, CPU, recorder)
    check(replayed(pictures(5)), pictures(5))
    check(replayed(pictures(1, 64, 64)), pictures(1, 64, 64))
    assert [shape[0] for shape in recorder.batches] == [2, 1, 1]


def test_after_so_many_sizes_pictures_are_run_as_they_come(monkeypatch):
    monkeypatch.setattr(graphs, "_SIZES_MAX", 2)
    recorder = Recorder()
    replayed = graphs.Replayed(network, CPU, recorder)
    for side in (8, 9, 10, 8):
        check(replayed(pictures(3, side, side)), pictures(3, side, side))
    assert {shape[2] for shape in recorder.batches} == {8, 9}


def test_pictures_of_one_size_too_many_wait_for_nobody_s_recording(monkeypatch):
    monkeypatch.setattr(graphs, "_SIZES_MAX", 1)
    replayed = graphs.Replayed(network, CPU, Recorder())
    replayed(pictures(1))
    with ThreadPoolExecutor(1) as other, graphs._RECORDING:
        images = pictures(3, 9, 9)
        check(other.submit(replayed, images).result(20), images)


def test_threads_do_not_mix_their_pictures():
    recorder = Recorder(pause_s=0.001)
    replayed = graphs.Replayed(network, CPU, recorder)
    start, wrong = threading.Barrier(4), []

    def work(seed):
        images = pictures(3, seed=seed)
        start.wait()
        for _ in range(10):
            try:
                check(replayed(images), images)
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert len(recorder.batches) == 7, "one of them records, the others wait for it"


@pytest.mark.parametrize("record", [None, graphs.called])
def test_a_network_that_fails_harms_no_later_batch(record):
    asked = []

    def fails_once(images):
        asked.append(images)
        if len(asked) == 1:
            raise ValueError("no memory")
        return network(images)

    replayed = graphs.Replayed(fails_once, CPU, record)
    with pytest.raises(ValueError, match="no memory"):
        replayed(pictures(2))
    check(replayed(pictures(2)), pictures(2))
