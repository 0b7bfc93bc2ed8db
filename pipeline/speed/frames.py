"""What frames cost, from encoded pictures to verdicts and maps, where batches are computed at the same time.

One batch is decoded while another is copied and computed, as in a worker, whose threads these are. What is left out is
what brings the frames and takes the verdicts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from pipeline import engines, threads
from pipeline.data import Frame
from pipeline.devices import resolve_device
from pipeline.errors import ConfigError
from pipeline.inspection import Inspector
from pipeline.methods.patchcore import PatchCoreConfig
from pipeline.progress import Progress, silent
from pipeline.speed import encoded, score, turns

_BATCHES = 8  # of each turn, for each that is computed at the same time
_PICTURES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure.

    Attributes:
        bank_rows: of PatchCore's bank.
        batch: frames together; 0 is 16, on a GPU 64.
        at_once: how many batches are computed at the same time, each number by itself.
        engine: what runs the backbone; where the device has not this, 8 bits or its fastest.
        size_bytes: of a frame, about.
    """

    backbone: str = "goldline-s"
    bank_rows: int = 1638
    batch: int = 0
    at_once: Sequence[int] = (1, 2)
    engine: str = ""
    device: str = "cpu"
    size: int = 224
    size_bytes: int = 200_000
    repeats: int = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure, medians of the turns, with quartiles."""

    method: str
    backbone: str
    bank_rows: int
    batch: int
    size: int
    device: str
    precision: str
    decode_on: str
    at_once: int
    frame_bytes: int
    turns: int
    frames_per_s: float = 0.0
    per_s_low: float = 0.0
    per_s_high: float = 0.0


def run(asked: Asked, *, progress: Progress = silent) -> list[Row]:
    """Measure each number of batches at the same time, with pictures that the CPU decodes and, on a GPU, that it does.

    Raises:
        ConfigError: a name is unknown, there are fewer threads than batches at the same time, or no such device.
    """
    device = resolve_device(asked.device)
    if asked.engine and asked.engine not in engines.ENGINES:
        raise ConfigError(f"no engine {asked.engine!r}; there are {', '.join(engines.ENGINES)}")
    there = threads.cores()
    if max(asked.at_once) > there:
        raise ConfigError(f"{max(asked.at_once)} batches at once want as many threads: there are {there}")
    candidates = engines.candidates(device) + ([engines.INT8] if engines.can_round(device) else [])
    engine = asked.engine if asked.engine in candidates else candidates[-1]
    batch = asked.batch or (64 if device.type == "cuda" else 16)
    side = encoded.side_of(asked.size_bytes)
    images = [encoded.drawn(i, side) for i in range(_PICTURES)]
    frames = [Frame(frame_id=str(i), image=images[i % _PICTURES]) for i in range(batch)]
    variants: dict[str, Callable[[], float]] = {}
    rows: dict[str, Row] = {}
    with ExitStack() as pools:
        for at_once in asked.at_once:
            with _shared(there, at_once):
                net = score.net_of(asked.backbone, engine, str(device))
                inspector = score.inspector_of("patchcore", net, asked.bank_rows, asked.size, PatchCoreConfig())
            for decode_on in ("cpu", "gpu") if device.type == "cuda" else ("cpu",):
                name = f"{decode_on} {at_once}"
                pool = pools.enter_context(ThreadPoolExecutor(at_once))
                variants[name] = partial(_once, _decoding(inspector, decode_on), frames, there, at_once, pool)
                rows[name] = Row(
                    method="patchcore",
                    backbone=asked.backbone,
                    bank_rows=asked.bank_rows,
                    batch=batch,
                    size=asked.size,
                    device=str(device),
                    precision=engine,
                    decode_on=decode_on,
                    at_once=at_once,
                    frame_bytes=round(sum(map(len, images)) / _PICTURES),
                    turns=asked.repeats,
                )
        took = turns.measured(variants, repeats=asked.repeats, progress=progress)
    return [_with(rows[name], each, batch * _BATCHES * rows[name].at_once) for name, each in took.items()]


def body(rows: Sequence[Row]) -> dict[str, Any]:
    """The report as JSON."""
    return {"machine": turns.machine(), "rows": [asdict(row) for row in rows]}


def _decoding(inspector: Inspector, decode_on: str) -> Inspector:
    view = replace(inspector.view, resized_by="gpu" if decode_on == "gpu" else "torch")
    return Inspector(inspector.detector, inspector.threshold, view, inspector.limits, device=inspector.device)


def _once(inspector: Inspector, frames: Sequence[Frame], there: int, at_once: int, pool: ThreadPoolExecutor) -> float:
    """Seconds of so many batches, each thread's one after the other; the pool's threads stay, and what is theirs."""
    with _shared(there, at_once):
        started = time.perf_counter()
        for inspected in pool.map(inspector.inspect, [frames] * (_BATCHES * at_once)):
            assert not inspected.failures  # noqa: S101 - they are our own pictures
        return time.perf_counter() - started


@contextmanager
def _shared(there: int, at_once: int) -> Iterator[None]:
    before = torch.get_num_threads()
    threads.share(there, at_once)
    try:
        yield
    finally:
        threads.share(before, 1)


def _with(row: Row, took: turns.Took, count: int) -> Row:
    spread = took.spread
    low, median, high = (round(count / seconds, 1) for seconds in (spread.high, spread.median, spread.low))
    return replace(row, frames_per_s=median, per_s_low=low, per_s_high=high)
