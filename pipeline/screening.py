"""Which good pictures are unlike the others: each is scored by a model that learnt from the others alone.

A defect among the goods teaches a model that it is good. What stands out may be one, or a rare good part that must
stay: a person says which. Leaving out whatever stands out costs more than it brings, as rare good parts come again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import tiling
from pipeline.backbone import Backbone
from pipeline.commissioning import readable, rotated, score_all
from pipeline.data import Frame, Images
from pipeline.decode import Limits
from pipeline.errors import ConfigError, FitError
from pipeline.progress import Progress, silent
from pipeline.view import View

FOLDS = 5
DEVIATIONS = 4.0
_FOLD_MIN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """Good pictures, the one most unlike the others first.

    Attributes:
        frame_ids: (N,) of those that could be read.
        scores: (N,) float32, by models that learnt from the others alone: one for each fold, so that near scores say
            little about which is the higher, and less with methods that scale scores by goods that they hold out.
        standing_out: so many of the first lie more than `DEVIATIONS` robust standard deviations above the median.
        maps: (M, H, W) float32 of the first M.
        pixels: (M, 3, H, W) uint8 of the first M, as the models saw them.
        unreadable: ids of the frames that could not be decoded.
    """

    frame_ids: tuple[str, ...]
    scores: NDArray[np.float32]
    standing_out: int
    maps: NDArray[np.float32]
    pixels: NDArray[np.uint8]
    unreadable: tuple[str, ...]


def screen(
    goods: Sequence[Frame],
    *,
    method: str,
    config: Any,
    backbone: Backbone,
    view: View,
    limits: Limits,
    count: int = FOLDS,
    most: int = 30,
    rotations: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> Screened:
    """Score each good picture by a model of the others, in folds, and put them in order.

    A part that is there twice, in two pictures, vouches for itself where they come into different folds. Scores of
    tiled views, each in the deviations of few goods of its own fit, are first standardised in each fold.

    Args:
        goods: frames of what are said to be good parts.
        method: key of METHODS.
        config: what `methods.make_config` returned.
        backbone: frozen features.
        view: which part of a frame is seen.
        limits: what is accepted as a picture.
        count: of the folds, at least 2: so many models are fitted.
        most: pictures whose maps are kept.
        rotations: as in `commissioning.commission`.
        seed: of the folds and of the fits.
        progress: called as it goes.

    Raises:
        ConfigError: fewer than two folds.
        FitError: too few readable goods; the message says how many are needed.
    """
    tiled = view.tiles != (1,)
    if count < 2:
        raise ConfigError(f"folds: at least 2 are needed, so that a model has not seen what it scores; not {count}")
    decoded = readable(goods, view, limits, progress, backbone.device)
    pixels = decoded.images.pixels
    n = len(pixels)
    if tiled and n < _FOLD_MIN * count:
        raise FitError(
            f"{n} pictures in {count} folds: a view of tiles needs {_FOLD_MIN} a fold, to compare one fold with another"
        )
    backbone = tiling.settled(backbone, method, decoded.images, tiles=view.tiles, size=view.size)
    scores, maps = torch.empty(n), dict[int, Tensor]()
    done = 0
    for held, others in folds(n, count, seed):
        progress("screen", done, n)
        detector = tiling.fit(
            method,
            rotated(Images(pixels[others]), rotations),
            config,
            tiles=view.tiles,
            size=view.size,
            backbone=backbone,
            seed=seed,
            progress=progress,
        )
        scored = score_all(detector, Images(pixels[held]), stage="score", progress=progress)
        middle, spread = spread_of(scored.image) if tiled else (0.0, 1.0)
        scores[held] = ((scored.image - middle) / spread).nan_to_num(torch.inf)
        maps |= dict(zip(held.tolist(), (scored.map - middle) / spread, strict=True))
        # Of all folds so far: the maps of one at a time are in memory as a whole.
        maps = {i: maps[i].clone() for i in _highest(maps, scores)[:most]}
        done += len(held)
    progress("screen", n, n)
    order = _highest(range(n), scores)
    first = order[:most]
    return Screened(
        frame_ids=tuple(decoded.frame_ids[i] for i in order),
        scores=scores[order].numpy(),
        standing_out=int(outliers(scores, DEVIATIONS).sum()),
        maps=torch.stack([maps[i] for i in first]).numpy(),
        pixels=pixels[first].numpy(),
        unreadable=tuple(failure.frame_id for failure in decoded.failures),
    )


def folds(n: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Splits of n pictures: the places of those that are held out, each once, and a mask (n,) of all the others.

    Args:
        n: at least 2.
        count: of the folds, at least 2; at most n are made.
        seed: of who goes with whom.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for fold in range(min(count, n)):
        held = order[fold::count]
        others = torch.ones(n, dtype=torch.bool)
        others[held] = False
        yield held, others


def outliers(scores: Tensor, deviations: float) -> Tensor:
    """Which scores, (N,), lie further above the median than so many robust standard deviations."""
    middle, spread = spread_of(scores)
    return scores.double() > middle + deviations * spread


def spread_of(scores: Tensor) -> tuple[float, float]:
    """Median and robust standard deviation (1.4826 MAD) of scores, (N,); the mean deviation if half are the same."""
    values = scores.double()
    middle = values.median()
    away = (values - middle).abs()
    return float(middle), float(1.4826 * away.median()) or float(away.mean())


def _highest(places: Iterable[int], scores: Tensor) -> list[int]:
    """Places by their scores, the highest first; like ones as they are numbered."""
    return sorted(places, key=lambda i: (-float(scores[i]), i))
