"""In which order a GPU is told what to do. None is needed for that: its streams are written down instead."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from pipeline import devices


class Stream:
    def __init__(self, told, name):
        self.told, self.name = told, name

    def wait_stream(self, other):
        self.told.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def told(monkeypatch):
    """What a GPU was told, in order."""
    told = []
    here = Stream(told, "here")

    @contextmanager
    def stream(which):
        told.append(f"on {which.name}")
        yield
        told.append("on here")

    @contextmanager
    def device(_):
        yield

    def made(_, priority):
        return Stream(told, f"own {priority}")

    gpu = SimpleNamespace(current_stream=lambda _: here, Stream=made, stream=stream, device=device)
    monkeypatch.setattr(devices, "torch", SimpleNamespace(**{**vars(torch), "cuda": gpu}))
    monkeypatch.setattr(devices, "_mine", devices._OfThread())
    return told


class Values:
    """A tensor on its way."""

    def __init__(self, told):
        self.told = told

    def to(self, _, *, non_blocking):
        self.told.append("copied" if non_blocking else "waited")
        return self

    def record_stream(self, stream):
        self.told.append(f"kept for {stream.name}")


class Device:
    type = "cuda"


def test_what_is_sent_is_copied_beside_and_kept_and_waited_for(told):
    gpu = Device()
    devices.sent(Values(told), gpu)
    once = ["on own -1", "copied", "kept for here", "on here", "here waits for own -1"]
    assert told == once
    devices.sent(Values(told), gpu)
    assert told == once * 2
    assert len(devices._mine.streams) == 1, "a thread has one stream for good"


def test_on_a_cpu_nothing_is_different(told):
    values = torch.arange(3)
    assert devices.sent(values, devices.CPU) is values
    with devices.beside(devices.CPU) as hand:
        assert hand(values) is values
    assert not told
    assert not devices.staging((2, 3), devices.CPU).is_pinned()
