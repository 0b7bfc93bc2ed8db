"""Variants measured in turns."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline import threads
from pipeline.progress import Progress, silent


@dataclass(frozen=True, slots=True)
class Took:
    """What a variant took, in seconds: median and quartiles of its turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Took":
        """Of at least one turn."""
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


def medians(
    variants: Mapping[str, Callable[[], float]], *, repeats: int, warm_up: bool = True, progress: Progress = silent
) -> dict[str, float]:
    """The median of what each variant says it took, in turns: see `measured`."""
    took = measured(variants, repeats=repeats, warm_up=warm_up, progress=progress)
    return {name: each.median for name, each in took.items()}


def measured(
    variants: Mapping[str, Callable[[], float]], *, repeats: int, warm_up: bool = True, progress: Progress = silent
) -> dict[str, Took]:
    """What each variant says it took, in turns.

    Args:
        variants: each does its work once and returns its seconds.
        repeats: how often each does.
        warm_up: let each do it once before, which does not count.
        progress: called as it goes.
    """
    for run in variants.values() if warm_up else ():
        run()
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats):
        for name, run in variants.items():
            spent[name].append(run())
        progress("turns", turn + 1, repeats)
    return {name: Took.of(each) for name, each in spent.items()}


def machine() -> dict[str, str | int]:
    """What figures depend on."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": model,
        "cores": threads.cores(),
        "instructions": " ".join(name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
        "torch": torch.__version__,
    }
