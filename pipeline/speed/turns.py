"""Variants measured in turns."""

import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from pipeline import threads
from pipeline.progress import Progress, silent

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "avx512_vnni", "amx_bf16", "amx_int8")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of a figure that each turn gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Of at least one turn."""
        low, median, high = np.quantile(figures, (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Took:
    """The seconds that a variant took, turn by turn."""

    seconds: Sequence[float]

    @property
    def spread(self) -> Spread:
        """Of the turns."""
        return Spread.of(self.seconds)

    def times(self, other: "Took") -> Spread:
        """How many times as long as another it took: of each turn by itself, whose two share the machine's mood."""
        return Spread.of([mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)])


def medians(
    variants: Mapping[str, Callable[[], float]], *, repeats: int, warm_up: bool = True, progress: Progress = silent
) -> dict[str, float]:
    """The median of what each variant says it took, in turns: see `measured`."""
    took = measured(variants, repeats=repeats, warm_up=warm_up, progress=progress)
    return {name: each.spread.median for name, each in took.items()}


def measured(
    variants: Mapping[str, Callable[[], float]],
    *,
    repeats: int,
    warm_up: bool = True,
    back_and_forth: bool = False,
    progress: Progress = silent,
) -> dict[str, Took]:
    """What each variant says it took, in turns.

    Args:
        variants: each does its work once and returns its seconds.
        repeats: how often each does.
        warm_up: let each do it once before, which does not count.
        back_and_forth: a turn goes through all and back again, and counts the mean of both: what runs before leaves
            caches as it likes, and so two variants of the same thing have the same before them, in each turn.
        progress: called as it goes.
    """
    for run in variants.values() if warm_up else ():
        run()
    spent: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants.items())
    for turn in range(repeats):
        there = {name: run() for name, run in order}
        back = {name: run() for name, run in reversed(order)} if back_and_forth else there
        for name, seconds in there.items():
            spent[name].append((seconds + back[name]) / 2)
        progress("turns", turn + 1, repeats)
    return {name: Took(each) for name, each in spent.items()}


def machine() -> dict[str, str | int]:
    """What figures depend on, and the commit that they are of, `+` where files differ from it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": model,
        "cores": threads.cores(),
        "instructions": " ".join(name for name in _INSTRUCTIONS if name in flags),
        "caches": " ".join(path.read_text(encoding="ascii").strip() for path in sorted(_CACHES.glob("index*/size"))),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
        "torch": torch.__version__,
        "openvino": next((each.version for each in metadata.distributions(name="openvino")), ""),
        "commit": _commit(),
    }


def _commit() -> str:
    """Of the checkout that this is; nothing where it is none."""
    order = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(order, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
