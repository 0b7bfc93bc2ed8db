"""Devices by name."""

import re

import torch
from torch import Tensor

from pipeline.errors import ConfigError


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
