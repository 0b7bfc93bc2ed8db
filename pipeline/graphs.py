"""A network recorded once for each size of batch and replayed: Python launches kernels more slowly than GPUs run them.

A recording is tied to its tensors. Pictures are copied into those that it reads, beside whatever lies there from before
where a batch does not fill its bucket, and its maps are copied out before the next replay overwrites them.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.data import Size

Network: TypeAlias = Callable[[Tensor], list[Tensor]]
"""(B, 3, H, W) uint8 on its device to maps (B, C, h, w), each picture by itself."""
Recording: TypeAlias = tuple[Callable[[], None], list[Tensor]]
"""What runs a network again on the very same pictures, and the list with its maps, which the next run may overwrite."""
Record: TypeAlias = Callable[[Network, Tensor], Recording]

BATCH_MAX = 64
_PIXELS_MAX = BATCH_MAX * 256 * 256  # of a batch: recordings hold their memory for good
_SIZES_MAX = 8  # of pictures that have recordings; others are run as they come
_WARM_UPS = 3
_RECORDING = threading.Lock()  # torch allows one capture at a time in a process


class Replayed:
    """A network behind recordings, for batches of 1, 2, 4 to 64 pictures. Safe to call from several threads.

    All buckets of a size of pictures are recorded when the first of it come, so that no later batch waits. A picture's
    maps do not depend on what fills its bucket; which bucket it is may matter to their last bits, as kernels differ.

    Args:
        network: what is run.
        device: where.
        record: how it is recorded; by default as a CUDA graph, and on a CPU not at all: threads do not wait there.
    """

    def __init__(self, network: Network, device: torch.device, record: Record | None = None) -> None:
        self._network, self._device = network, device
        self._record = record or (captured if device.type == "cuda" else None)
        self._sizes: dict[Size, _Buckets] = {}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) uint8 -> maps (B, C, h, w) float32, the caller's own."""
        size = (images.shape[2], images.shape[3])
        buckets = self._sizes.get(size) or self._recorded(size)
        if buckets is None:
            parts = [
                [each.float() for each in self._network(part.to(self._device))]
                for part in torch.split(images, _most(size))
            ]
        else:
            parts = [buckets.run(part) for part in torch.split(images, buckets.largest)]
        return parts[0] if len(parts) == 1 else [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def _recorded(self, size: Size) -> "_Buckets | None":
        if self._record is None or (size not in self._sizes and len(self._sizes) >= _SIZES_MAX):
            return None  # without a wait for what others record
        with _RECORDING:
            if size not in self._sizes and len(self._sizes) < _SIZES_MAX:
                self._sizes[size] = _Buckets(self._network, size, self._device, self._record)
            return self._sizes.get(size)


class _Buckets:
    """The recordings for pictures of one size, (H, W); one is replayed at a time."""

    def __init__(self, network: Network, size: Size, device: torch.device, record: Record) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None
        self._recordings: dict[int, tuple[Tensor, Recording]] = {}
        self.largest = 1 << (_most(size).bit_length() - 1)
        count = self.largest
        while count:  # the largest first: the others find its warm-up's memory free
            images = torch.empty(
                count, 3, *size, dtype=torch.uint8, device=device, memory_format=torch.channels_last
            ).zero_()
            self._recordings[count] = images, record(network, images)
            count //= 2

    def run(self, images: Tensor) -> list[Tensor]:
        """At most `largest` pictures."""
        count = images.shape[0]
        bucket = 1 << max(0, count - 1).bit_length()
        kept, (replay, maps) = self._recordings[bucket]
        with self._alone():
            kept[:count].copy_(images, non_blocking=images.is_pinned())
            replay()
            return [each[:count].to(torch.float32, copy=True) for each in maps]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, no other thread is, and what another stream still does with the buffers comes before."""
        with self._lock:
            if self._device.type != "cuda":
                yield
                return
            with torch.cuda.device(self._device):
                stream = torch.cuda.current_stream()
                if self._done is not None:
                    stream.wait_event(self._done)
                try:
                    yield
                finally:
                    self._done = stream.record_event()


def _most(size: Size) -> int:
    """Pictures of (H, W) that are run together: more would take memory and no less time."""
    return max(1, min(BATCH_MAX, _PIXELS_MAX // (size[0] * size[1])))


def called(network: Network, images: Tensor) -> Recording:
    """No recording: the network is called anew each time."""
    maps: list[Tensor] = []

    def call() -> None:
        maps[:] = network(images)

    return call, maps


def captured(network: Network, images: Tensor) -> Recording:
    """A CUDA graph, as torch documents them; where it cannot be captured, what `called` gives, with a warning.

    Other threads may use the GPU meanwhile, and allocate memory there, but not draw random numbers there.
    """
    device = images.device
    here = torch.cuda.current_stream(device)
    with torch.cuda.device(device), torch.cuda.stream(here):  # it is current again, whatever a failed capture leaves
        side = _side(device)
        side.wait_stream(here)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):  # libraries choose and allocate what a capture does not permit them to
                    network(images)
            here.wait_stream(side)
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                maps = network(images)
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph for {tuple(images.shape)}, slower without: {error}", stacklevel=2)
            return called(network, images)
    return graph.replay, maps


def recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What does the same again, on the same memory: from a CUDA graph, or `work` itself where none can be captured.

    What other threads may do meanwhile is as in `captured`.

    Args:
        work: launches kernels that have run before; it is called once to be recorded, and does nothing then.
        device: a GPU.
    """
    graph = torch.cuda.CUDAGraph()
    here = torch.cuda.current_stream(device)
    with _RECORDING, torch.cuda.device(device), torch.cuda.stream(here):
        side = _side(device)
        side.wait_stream(here)
        try:
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph, slower without: {error}", stacklevel=2)
            return work
    return graph.replay


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """Where captures are made, one at a time: of a device's 32 streams, which all who ask share, no more than one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
