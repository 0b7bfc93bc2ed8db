"""Which engine a model is fitted with where nobody names one: the fastest here that does as well as float32."""

import contextlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline import eight_bits, engines
from pipeline.backbone import Backbone
from pipeline.data import Size
from pipeline.devices import wait_for
from pipeline.errors import ConfigError, FitError

AGREE = 0.02  # relative error of features that an engine may have against torch in float32
_TRIALS = 7

T = TypeVar("T")


def on_fastest_engine(backbone: Backbone, size: Size) -> Backbone:
    """The same on the engine that takes least time here for a picture of (H, W); torch must be its engine now.

    Every candidate runs a few pictures, and one whose features differ from torch's is out. Nor are 8 bits among them:
    it takes good pictures to say whether those will do, and `settled` asks them.
    """
    first, *others = engines.candidates(backbone.device)
    opened = {first: backbone.on(first, may_round=True)}
    for name in others:
        with contextlib.suppress(ConfigError):  # a network that cannot be copied
            opened[name] = backbone.on(name, may_round=True)
    return fastest(opened, _maps, size)


def is_settled(backbone: Backbone) -> bool:
    """Whether good pictures can change nothing about how it runs."""
    return not backbone.may_round and (backbone.spec.engine != engines.INT8 or bool(backbone.spec.cuts))


def settled(backbone: Backbone, goods: Tensor) -> Backbone:
    """As a fit on good pictures runs it.

    That is in 8 bits, cut off as these show, where its engine says so; or where it may round, that takes less time, and
    pictures lie as far from each other as before (`eight_bits`).

    Args:
        backbone: on the engine that was asked for, or `on_fastest_engine`.
        goods: (B, 3, H, W) uint8.

    Raises:
        FitError: it is to run in 8 bits, and its network cannot.
    """
    if is_settled(backbone):
        return backbone
    if backbone.spec.engine == engines.INT8:
        return backbone.rounded(goods)
    if len(goods) > 1 and engines.can_round(backbone.device):
        # A network without ReLU has nothing to round, and one of one's own may be beyond OpenVINO.
        with contextlib.suppress(ConfigError, FitError, RuntimeError):
            rounded, few = backbone.rounded(goods), goods[: eight_bits.PICTURES]
            made = _maps(rounded, few)
            if _typical_s(partial(_maps, rounded, goods[:1])) < _typical_s(partial(_maps, backbone, goods[:1])):
                truth = _maps(backbone.on("torch"), few)
                if eight_bits.disturbance(truth, made) <= eight_bits.DISTURBED_MAX:
                    return rounded
    return backbone.on(backbone.spec.engine)


def fastest(opened: dict[str, T], run: Callable[[T, Tensor], list[Tensor]], size: tuple[int, int]) -> T:
    """The one that takes least time for a picture of (H, W), among those that run it and agree with torch.

    Args:
        opened: by engine's name, torch first.
        run: features of a picture.
        size: (H, W) of the trial.
    """
    # Two, both by torch first: a copy that gives out what the network kept of its last picture agrees with that one.
    pictures = [_coarse(size, seed) for seed in (0, 1)]
    truths = [run(opened["torch"], picture) for picture in pictures]
    agree = {"torch": opened["torch"]}
    for name, each in opened.items():
        if name == "torch":
            continue
        with contextlib.suppress(ConfigError, RuntimeError):  # a network of one's own may know float32 alone
            made = [run(each, picture) for picture in pictures]
            if all(_wrong(*both) <= AGREE for both in zip(made, truths, strict=True)):
                agree[name] = each
    took = {name: _typical_s(partial(run, each, pictures[0])) for name, each in agree.items()}
    return opened[min(took, key=lambda name: took[name])]


def _coarse(size: Size, seed: int) -> Tensor:
    """A picture (1, 3, H, W) uint8 of soft blots."""
    coarse = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).float()
    return nn.functional.interpolate(coarse, size=size, mode="bilinear").to(torch.uint8)


def _wrong(made: list[Tensor], truth: list[Tensor]) -> float:
    """The largest relative error of a map; not a number where one has none."""
    errors = [(a - b).norm() / b.norm().clamp_(min=1e-9) for a, b in zip(made, truth, strict=True)]
    return float(torch.stack(errors).max())


def _typical_s(work: Callable[[], list[Tensor]]) -> float:
    return statistics.median(_seconds(work) for _ in range(_TRIALS))


def _seconds(work: Callable[[], list[Tensor]]) -> float:
    started = time.perf_counter()
    wait_for(work()[0].device)
    return time.perf_counter() - started


def _maps(backbone: Backbone, images: Tensor) -> list[Tensor]:
    return list(backbone(images).values())
