"""Greedy k-centre selection with one kernel a step, replayed from a CUDA graph of many steps. Needs Triton.

A step reads every point once: N x P float16 are what bounds it, as long as they are read faster than kernels start.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline import graphs
from pipeline.progress import Progress, silent

_POINTS = 64  # of a tile
_WARPS = 4
_PROGRAMS_PER_PROCESSOR = 8
_STEPS = 128  # of a recording; even, as steps write to two places in turn


def farthest_in_turn(points: Tensor, farness: Tensor, count: int, progress: Progress = silent) -> Tensor:
    """The point with the largest farness, again and again; each choice lowers its neighbours' to the distance from it.

    Nothing is waited for but while steps are recorded: the choices are still being made when this returns.

    Args:
        points: (N, P) float16, P a power of two.
        farness: (N,) float32 to begin with, in the unit of squared distances; it is overwritten.
        count: how many, at most N.
        progress: told "coreset" of the steps that were launched.

    Returns:
        (count,) int64, distinct.
    """
    run = _Run(points, farness)
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    whole = count // _STEPS
    replay: Callable[[], None] = run.steps
    for i in range(whole):
        replay()
        chosen[i * _STEPS : (i + 1) * _STEPS] = run.chosen
        progress("coreset", (i + 1) * _STEPS, count)
        if i == 0 and whole > 1 and points.device.type == "cuda":
            replay = graphs.recorded(run.steps, points.device)
    left = count - whole * _STEPS
    if left:
        run.steps(left)
        chosen[whole * _STEPS :] = run.chosen[:left]
        progress("coreset", count, count)
    return chosen


class _Run:
    """What the steps write to, always the same memory."""

    def __init__(self, points: Tensor, farness: Tensor) -> None:
        self._points, self._farness = points.contiguous(), farness
        tiles = triton.cdiv(len(points), _POINTS)
        self._each = triton.cdiv(tiles, min(tiles, _programs(points.device))) * _POINTS
        self._programs = triton.cdiv(len(points), self._each)
        device = points.device
        self._peaks = torch.full((2, self._programs), -torch.inf, device=device)
        self._places = torch.zeros(2, self._programs, dtype=torch.int32, device=device)
        self._peaks[0, :1], place = farness.max(dim=0, keepdim=True)
        self._places[0, :1] = place
        self.chosen = torch.empty(_STEPS, dtype=torch.int64, device=device)

    def steps(self, count: int = _STEPS) -> None:
        """So many further steps; `chosen` has their choices."""
        with torch.cuda.device(self._points.get_device()):  # of a CPU that is -1, which changes nothing
            for i in range(count):
                _step[(self._programs,)](
                    self._points, self._farness, self._peaks[i % 2], self._places[i % 2],
                    self._peaks[1 - i % 2], self._places[1 - i % 2], self.chosen[i:], len(self._points), self._each,
                    programs=self._programs, programs_in=triton.next_power_of_2(self._programs),
                    dim=self._points.shape[1], points_in=_POINTS, num_warps=_WARPS,
                )  # fmt: skip


def _programs(device: torch.device) -> int:
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return int(_PROGRAMS_PER_PROCESSOR * processors)


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    points, farness, peaks, places, next_peaks, next_places, chosen, n, each,
    programs: tl.constexpr, programs_in: tl.constexpr, dim: tl.constexpr, points_in: tl.constexpr,
):  # fmt: skip
    """Every program finds the farthest point of all; each then looks at `each` points of its own."""
    several = tl.arange(0, programs_in)
    found = tl.load(peaks + several, mask=several < programs, other=float("-inf"))
    best = tl.argmax(found, axis=0)
    row = tl.load(places + best)
    program = tl.program_id(0)
    tl.store(chosen, row.to(tl.int64), mask=program == 0)
    dims = tl.arange(0, dim)
    centre = tl.load(points + row.to(tl.int64) * dim + dims).to(tl.float32)
    high = tl.full((), float("-inf"), tl.float32)
    high_at = tl.full((), 0, tl.int32)
    first = program * each
    for start in range(first, min(first + each, n), points_in):
        rows = start + tl.arange(0, points_in)
        inside = rows < n
        there = tl.load(points + rows.to(tl.int64)[:, None] * dim + dims[None, :], mask=inside[:, None], other=0.0)
        apart = there.to(tl.float32) - centre[None, :]
        left = tl.minimum(tl.load(farness + rows, mask=inside, other=float("-inf")), tl.sum(apart * apart, axis=1))
        left = tl.where(rows == row, float("-inf"), left)  # never twice, even where every point is the same
        tl.store(farness + rows, left, mask=inside)
        peak, place = tl.max(left, axis=0, return_indices=True)
        high_at = tl.where(peak > high, start + place, high_at)
        high = tl.maximum(high, peak)
    tl.store(next_peaks + program, high)
    tl.store(next_places + program, high_at)
