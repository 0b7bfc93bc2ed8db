"""From good pictures to an `Inspector`: split, fit, calibrate. What `goldline fit` and every refit call."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import methods
from pipeline.backbone import Backbone
from pipeline.data import Frame, Images, Scores
from pipeline.decide import calibrate
from pipeline.decode import Decoded, Limits, View, decode
from pipeline.errors import FitError
from pipeline.inspection import Inspector
from pipeline.methods.base import Detector
from pipeline.progress import Progress, silent

CALIBRATE_SHARE = 0.3
GOODS_MIN = 10
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Commissioned:
    """A new model and how it came about.

    Attributes:
        frames: how many goods served each purpose: fit, tune, calibrate.
        unreadable: ids of the frames that could not be decoded; they served none.
        fit_s: wall seconds of it all.
    """

    inspector: Inspector
    frames: dict[str, int]
    unreadable: tuple[str, ...]
    fit_s: float


def commission(
    goods: Sequence[Frame],
    *,
    method: str,
    config: Any,
    backbone: Backbone,
    view: View,
    limits: Limits,
    rate: float,
    calibrate_share: float = CALIBRATE_SHARE,
    seed: int = 0,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Commissioned:
    """Fit a method to good frames and calibrate its threshold on others.

    The goods are split at random, by `seed`, into two disjoint sets: a threshold learnt on frames that the bank has
    seen would be too low.

    Args:
        goods: frames of good parts.
        method: key of METHODS.
        config: what `methods.make_config` returned.
        backbone: frozen features.
        view: which part of a frame is seen.
        limits: what is accepted as a picture.
        rate: the share of good parts that may be rejected.
        calibrate_share: share of the goods kept for the threshold, in (0, 1).
        seed: of the split and of the fit.
        scratch: a folder for the checkpoints of a long training.
        progress: called as it goes.

    Raises:
        FitError: too few readable goods; the message says how many are needed.
    """
    started = time.perf_counter()
    decoded = decode_all(goods, view, limits, progress)
    n = len(decoded.frame_ids)
    if n < GOODS_MIN:
        raise FitError(
            f"{n} readable good frames of {len(goods)}; at least {GOODS_MIN} are needed"
            + (f" (first unreadable: {decoded.failures[0].detail})" if decoded.failures else "")
        )
    order = np.random.default_rng(seed).permutation(n)
    kept = min(max(round(n * calibrate_share), 5), n - 5)
    pixels = decoded.images.pixels
    held_out, used = torch.from_numpy(np.sort(order[:kept])), torch.from_numpy(np.sort(order[kept:]))
    detector = methods.fit(
        method, Images(pixels[used]), config, backbone=backbone, seed=seed, scratch=scratch, progress=progress
    )
    threshold = calibrate(score_all(detector, Images(pixels[held_out]), progress=progress), rate=rate)
    return Commissioned(
        inspector=Inspector(detector, threshold, view, limits),
        frames={"fit": len(used), "tune": 0, "calibrate": kept},
        unreadable=tuple(failure.frame_id for failure in decoded.failures),
        fit_s=time.perf_counter() - started,
    )


def score_all(detector: Detector, images: Images, *, progress: Progress = silent) -> Scores:
    """Scores of many pictures, in batches, on the CPU."""
    parts = []
    for at in range(0, len(images), _BATCH):
        progress("calibrate", at, len(images))
        scored = detector.score(detector.embed(images.pixels[at : at + _BATCH]))
        parts.append(Scores(scored.image.cpu(), scored.map.cpu()))
    progress("calibrate", len(images), len(images))
    return Scores(torch.cat([p.image for p in parts]), torch.cat([p.map for p in parts]))


def decode_all(goods: Sequence[Frame], view: View, limits: Limits, progress: Progress) -> Decoded:
    """Many frames as one batch; what cannot be read is in its `failures`."""
    parts = []
    for done, frame in enumerate(goods):
        progress("decode", done, len(goods))
        parts.append(decode([frame], view, limits))
    progress("decode", len(goods), len(goods))
    empty = decode([], view, limits).images.pixels
    return Decoded(
        images=Images(torch.cat([empty, *(p.images.pixels for p in parts)])),
        frame_ids=tuple(i for p in parts for i in p.frame_ids),
        placements=tuple(x for p in parts for x in p.placements),
        failures=tuple(f for p in parts for f in p.failures),
    )
