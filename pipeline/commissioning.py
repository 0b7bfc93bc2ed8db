"""From good pictures to an `Inspector`: split, fit, calibrate. What `goldline fit` and every refit call.

And from other good pictures to another threshold for it: what `goldline calibrate` calls.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from pipeline import tiling
from pipeline.backbone import Backbone
from pipeline.data import Frame, Images, Scores
from pipeline.decide import Threshold, calibrate
from pipeline.decode import Decoded, Limits, decode
from pipeline.devices import CPU
from pipeline.errors import FitError
from pipeline.inspection import Inspector
from pipeline.methods.base import Detector
from pipeline.progress import Progress, silent
from pipeline.view import View

CALIBRATE_SHARE = 0.3
GOODS_MIN = 10
_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Commissioned:
    """A new model and how it came about.

    Attributes:
        method, config: what was fitted.
        frames: how many goods served each purpose: fit, tune, calibrate.
        calibrated_on: ids of the frames that served the last.
        unreadable: ids of the frames that could not be decoded; they served none.
        fit_s: wall seconds of it all.
    """

    inspector: Inspector
    method: str
    config: Any
    frames: dict[str, int]
    calibrated_on: tuple[str, ...]
    unreadable: tuple[str, ...]
    fit_s: float


def held_out_of(count: int, share: float = CALIBRATE_SHARE) -> int:
    """How many of so many goods calibrate."""
    return min(max(round(count * share), 5), count - 5)


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
    rotations: int = 1,
    seed: int = 0,
    scratch: Path | None = None,
    choose: Callable[[Images, Backbone], tuple[str, Any]] | None = None,
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
        rotations: how often each picture is shown to the fit, turned by equal angles: for few pictures of a part whose
            pose is free.
        seed: of the split and of the fit.
        scratch: a folder for the checkpoints of a long training.
        choose: says another method and its config, from the pictures that are to be fitted and the backbone as it runs.
            Those that calibrate have no say in it: the threshold would promise too much.
        progress: called as it goes.

    Raises:
        FitError: too few readable goods; the message says how many are needed.
    """
    started = time.perf_counter()
    decoded = readable(goods, view, limits, progress, backbone.device)
    n = len(decoded.frame_ids)
    order = np.random.default_rng(seed).permutation(n)
    kept = held_out_of(n, calibrate_share)
    pixels = decoded.images.pixels
    held_out, used = torch.from_numpy(np.sort(order[:kept])), torch.from_numpy(np.sort(order[kept:]))
    learnt = rotated(Images(pixels[used]), rotations)
    if choose:
        backbone = tiling.settled(backbone, method, learnt, tiles=view.tiles, size=view.size)
        method, config = choose(Images(pixels[used]), backbone)
    detector = tiling.fit(
        method,
        learnt,
        config,
        tiles=view.tiles,
        size=view.size,
        backbone=backbone,
        seed=seed,
        scratch=scratch,
        progress=progress,
    )
    threshold = calibrate(score_all(detector, Images(pixels[held_out]), progress=progress), rate=rate)
    return Commissioned(
        inspector=Inspector(detector, threshold, view, limits, device=backbone.device),
        method=method,
        config=config,
        frames={"fit": len(used), "tune": 0, "calibrate": kept},
        calibrated_on=tuple(decoded.frame_ids[i] for i in held_out.tolist()),
        unreadable=tuple(failure.frame_id for failure in decoded.failures),
        fit_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibrated:
    """Another threshold for a model, and what it comes from.

    Attributes:
        calibrated_on: ids of the frames whose scores it comes from.
        unreadable: ids of the frames that could not be decoded; they served nothing.
        rejected_before: how many of the former the model's own threshold rejects. They are good parts that no threshold
            selected, so that their share estimates the rate of false rejects in service, without bias.
    """

    threshold: Threshold
    calibrated_on: tuple[str, ...]
    unreadable: tuple[str, ...]
    rejected_before: int


def recalibrate(
    inspector: Inspector, goods: Sequence[Frame], *, rate: float, progress: Progress = silent
) -> Recalibrated:
    """A threshold for a model from good parts that it was not fitted on.

    Args:
        inspector: the model; it stays as it is.
        goods: one frame for each part, of parts that no threshold selected: accepted frames are cut off at the one that
            accepted them, and a threshold from them rejects more good parts than it promises, more with each round.
        rate: the share of good parts that may be rejected.
        progress: called as it goes.

    Raises:
        ConfigError: a rate that is none.
        FitError: too few readable goods, or one that is there twice: a copy shows nothing about other parts.
    """
    seen: dict[bytes, str] = {}
    for frame in goods:
        first = seen.setdefault(hashlib.sha256(frame.image).digest(), frame.frame_id)
        if first != frame.frame_id:
            raise FitError(f"{frame.frame_id} is the same picture as {first}: each part counts once, take one out")
    ids: list[str] = []
    unreadable: list[str] = []
    parts: list[Scores] = []
    for at in range(0, len(goods), _BATCH):
        progress("calibrate", at, len(goods))
        decoded = decode(goods[at : at + _BATCH], inspector.view, inspector.limits, inspector.device)
        unreadable += [failure.frame_id for failure in decoded.failures]
        if decoded.frame_ids:
            scored = score_all(inspector.detector, decoded.images)
            # Of each map a threshold needs its peak alone: thousands of maps would not fit into memory.
            parts.append(Scores(scored.image, scored.map.flatten(1).amax(dim=1).view(-1, 1, 1)))
            ids += decoded.frame_ids
    progress("calibrate", len(goods), len(goods))
    if not parts:
        raise FitError(f"none of {len(goods)} pictures can be read")
    scores = Scores(torch.cat([p.image for p in parts]), torch.cat([p.map for p in parts]))
    return Recalibrated(
        threshold=calibrate(scores, rate=rate),
        calibrated_on=tuple(ids),
        unreadable=tuple(unreadable),
        rejected_before=int((scores.image > inspector.threshold.image).sum()),
    )


def rotated(images: Images, count: int) -> Images:
    """Pictures turned about their centres by all multiples of 360 / count degrees, mirrored at their borders.

    Args:
        images: B of them.
        count: turns of each; with 1 the pictures are left as they are.

    Returns:
        count B, those not turned first; they know their originals.
    """
    if count == 1:
        return images
    turned = [images.pixels]
    height, width = images.size
    for turn in range(1, count):
        angle = 2 * math.pi * turn / count
        cos, sin = math.cos(angle), math.sin(angle)
        # Coordinates run from -1 to 1 along either side: the aspect keeps circles round.
        theta = torch.tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
        grid = affine_grid(theta.expand(len(images), 2, 3), list(images.pixels.shape), align_corners=False)
        values = grid_sample(images.pixels.float(), grid, padding_mode="reflection", align_corners=False)
        turned.append(values.round_().to(torch.uint8))
    return Images(torch.cat(turned), (images.originals or tuple(range(len(images)))) * count)


def score_all(detector: Detector, images: Images, *, stage: str = "calibrate", progress: Progress = silent) -> Scores:
    """Scores of many pictures, in batches, on the CPU."""
    parts = []
    for at in range(0, len(images), _BATCH):
        progress(stage, at, len(images))
        scored = detector.score(detector.embed(images.pixels[at : at + _BATCH]))
        parts.append(Scores(scored.image.cpu(), scored.map.cpu()))
    progress(stage, len(images), len(images))
    return Scores(torch.cat([p.image for p in parts]), torch.cat([p.map for p in parts]))


def readable(
    goods: Sequence[Frame], view: View, limits: Limits, progress: Progress, device: torch.device = CPU
) -> Decoded:
    """Good frames as one batch, as `decode_all` has them; what cannot be read is in its `failures`.

    Raises:
        FitError: too few can; the message says how many are needed.
    """
    decoded = decode_all(goods, view, limits, progress, device)
    n = len(decoded.frame_ids)
    if n < GOODS_MIN:
        raise FitError(
            f"{n} readable good frames of {len(goods)}; at least {GOODS_MIN} are needed"
            + (f" (first unreadable: {decoded.failures[0].detail})" if decoded.failures else "")
        )
    return decoded


def decode_all(
    goods: Sequence[Frame], view: View, limits: Limits, progress: Progress, device: torch.device = CPU
) -> Decoded:
    """Many frames as one batch on the host, decoded on a GPU where the view says so; unreadable: `failures`."""
    place = device if view.resized_by == "gpu" else CPU
    parts = []
    for done, frame in enumerate(goods):
        progress("decode", done, len(goods))
        part = decode([frame], view, limits, place)
        parts.append(replace(part, images=Images(part.images.pixels.cpu())))
    progress("decode", len(goods), len(goods))
    empty = torch.empty(0, 3, *view.seen, dtype=torch.uint8)
    return Decoded(
        images=Images(torch.cat([empty, *(p.images.pixels for p in parts)])),
        frame_ids=tuple(i for p in parts for i in p.frame_ids),
        placements=tuple(x for p in parts for x in p.placements),
        failures=tuple(f for p in parts for f in p.failures),
    )
