"""Which method for these parts, from good pictures alone: the default, unless another finds more planted defects.

Each candidate is fitted to some of the pictures and scores others, as they are and with defects planted in them. The
first candidate is taken unless another's AUROC is higher by two standard errors of the difference, which are jackknifed
over the pictures held out, as a picture and what is planted in it are no independent draws. Which pictures the
candidates were fitted to is not in that error: of candidates that find alike the default is not always taken.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import commissioning, methods, tiling
from pipeline.backbone import Backbone
from pipeline.choice import Candidate, MethodChoice, Tried
from pipeline.data import Images
from pipeline.errors import FitError
from pipeline.methods.base import Detector
from pipeline.planted import planted
from pipeline.progress import Progress, silent
from pipeline.view import View

AUTO = "auto"
FEWEST = 20
MOST = 300  # pictures that a choice takes: more would take longer and say little more
_HELD_OUT = 0.3
_PLANTED = 3  # in each picture held out
_BATCH = 8
_WHITENED = {"image_score": "map", "whitening": 0.9}


def candidates(view: View) -> list[Candidate]:
    """What is worth a look on a backbone that nobody trains, the default first.

    None of those that keep statistics by position where the view has tiles.
    """
    found = (
        Candidate(method="patchcore"),
        Candidate(method="patchcore", settings=_WHITENED),
        Candidate(method="padim", settings=methods.presets("padim", fixtured=True)),
    )
    return [each for each in found if view.tiles == tiling.WHOLE or not methods.METHODS[each.method].by_position]


def config_of(candidate: Candidate) -> Any:
    """For `methods.fit`."""
    return methods.make_config(candidate.method, candidate.settings)


def choose_method(
    images: Images,
    *,
    backbone: Backbone,
    view: View,
    rotations: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> MethodChoice:
    """The candidate to take for parts like these; one that cannot be fitted to so few of them is left out.

    Args:
        images: good pictures, of `view.seen`; of more than `MOST` so many are drawn.
        backbone: what sees them.
        view: how; defects are planted inside of its region of interest, and smaller where it has tiles.
        rotations: as in `commissioning.commission`.
        seed: of what is drawn, planted and fitted.
        progress: called as it goes.

    Raises:
        FitError: too few pictures to choose by.
    """
    check_enough(len(images))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:MOST]
    kept = round(len(order) * _HELD_OUT)
    held, used = images.pixels[order[:kept]], commissioning.rotated(Images(images.pixels[order[kept:]]), rotations)
    tried, found = [], []
    failure = None
    for candidate in candidates(view):
        try:
            detector = tiling.fit(
                candidate.method,
                used,
                config_of(candidate),
                tiles=view.tiles,
                size=view.size,
                backbone=backbone,
                seed=seed,
                progress=progress,
            )
        except FitError as error:
            failure = failure or error
            continue
        tried.append(candidate)
        found.append(_scores(detector, held, view, seed, progress))
    if failure and not tried:
        raise failure
    return best(tried, found)


def check_enough(count: int) -> None:
    """Whether a method can be chosen by so many good pictures.

    Raises:
        FitError: it cannot; the message says how many are needed.
    """
    if count < FEWEST:
        given = next(n for n in itertools.count(FEWEST) if n - commissioning.held_out_of(n) >= FEWEST)
        raise FitError(
            f"{count} good pictures to fit are too few to choose a method by: {FEWEST} are needed, and for a model "
            f"{given} in all, as some calibrate. Give more, or name a method"
        )


def _scores(detector: Detector, held: Tensor, view: View, seed: int, progress: Progress) -> NDArray[np.float64]:
    """(1 + planted, N): of pictures held out, as they are and with defects.

    Batch by batch: all maps and all pictures at once may be gigabytes.
    """
    inside = view.inside()
    where = None if inside is None else torch.from_numpy(inside)
    scores = np.empty((1 + _PLANTED, len(held)))
    for at in range(0, len(held), _BATCH):
        progress("choose", at, len(held))
        good = held[at : at + _BATCH]
        for k in range(1 + _PLANTED):
            lot = ((seed * _PLANTED) + k) * MOST + at
            shown = planted(good, inside=where, finer=max(view.tiles), seed=lot) if k else good
            scores[k, at : at + _BATCH] = detector.score(detector.embed(shown)).image.cpu()
    progress("choose", len(held), len(held))
    return scores


def best(tried: Sequence[Candidate], scores: Sequence[NDArray[np.float64]]) -> MethodChoice:
    """The candidate to take.

    Args:
        tried: the first is taken unless another leads it.
        scores: of each, (1 + planted, N): of N good pictures, and of each with defects.

    Returns:
        The choice; the first's lead is over itself, 0.
    """
    wins = [_wins(each) for each in scores]
    first = wins[0]
    told = []
    for candidate, mine in zip(tried, wins, strict=True):
        apart = _without_each(mine) - _without_each(first)
        n = len(apart)
        error = math.sqrt((n - 1) / n * float(((apart - apart.mean()) ** 2).sum()))
        auroc = float(mine.mean())
        told.append(Tried(candidate=candidate, auroc=auroc, lead=auroc - float(first.mean()), lead_error=error))
    leading = max((each for each in told if each.leads), key=lambda each: each.auroc, default=told[0])
    return MethodChoice(taken=leading.candidate, tried=tuple(told))


def _wins(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, N): how often what is planted in one picture scores above another good one, ties counting half."""
    good, bad = scores[0], scores[1:, :, None]
    won: NDArray[np.float64] = ((bad > good) + 0.5 * (bad == good)).mean(axis=0)
    return won


def _without_each(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,): the AUROC without a picture and what is planted in it."""
    n = len(wins)
    rest: NDArray[np.float64] = wins.sum() - wins.sum(axis=0) - wins.sum(axis=1) + np.diag(wins)
    return rest / (n - 1) ** 2
