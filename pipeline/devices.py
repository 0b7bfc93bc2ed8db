"""Devices by name, and what goes between them and the host."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.errors import ConfigError

CPU = torch.device("cpu")
_FIRST = -1  # of torch's priorities: such streams are none of those that graphs are recorded on


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.cuda.Stream] = {}


_mine = _OfThread()


def resolve_device(device: str) -> torch.device:
    """The device of that name; `auto` takes CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise ConfigError(f"device {device!r}: choose auto, cpu, cuda or cuda:N")
    place = torch.device(device)
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device {device}: this machine or this build of torch has no CUDA; choose cpu or auto")
        if (place.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {device}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return place


def describe_device(device: str) -> str:
    """What `resolve_device` finds, in words."""
    found = resolve_device(device)
    name = torch.cuda.get_device_name(found) if found.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{found}, {name}"


def wait_for(device: torch.device) -> None:
    """Returns when nothing that this thread began there is under way: a GPU works on while Python goes on.

    Only its stream is waited for: a whole device may not be while another thread records a graph there.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def to_host(values: Tensor) -> Tensor:
    """The same on the CPU: from a GPU into memory that it writes by itself, without a copy in between."""
    if values.device.type != "cuda":
        return values.cpu()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values)


def staging(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Bytes on the host, unset, on their way to a device: a GPU reads them by itself while Python goes on.

    They are lent by torch's allocator, which lends them to nobody else before a copy of them that was begun has ended:
    what the next batch is written into is another buffer.
    """
    return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


@contextmanager
def beside(device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, what this thread has a GPU do goes on beside what the GPU does already, on a stream of the thread's own.

    It may use nothing that a GPU made outside. What is to be used outside goes through the function that this gives; it
    is there for all that comes after the block. On a CPU nothing is different.
    """
    if device.type != "cuda":
        yield lambda made: made
        return
    here, own = torch.cuda.current_stream(device), _own_stream(device)

    def hand(made: Tensor) -> Tensor:
        made.record_stream(here)
        return made

    with torch.cuda.device(device), torch.cuda.stream(own):
        yield hand
    here.wait_stream(own)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The same on a device; what lies in memory from `staging` a GPU fetches `beside` what it does."""
    with beside(device) as hand:
        return hand(values.to(device, non_blocking=True))


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _mine.streams:
        _mine.streams[device] = torch.cuda.Stream(device, priority=_FIRST)  # type: ignore[no-untyped-call]
    return _mine.streams[device]
