"""The walk's fourth step: scores to verdicts, by thresholds learnt from good parts alone.

The image threshold is the (k+1)-th largest calibration score, with k from `guarantee.allowed`, and a score is rejected
strictly above it: then the rate of false rejects is at most the one asked for, given this calibration set, with 95 %
confidence, equal scores or not. Where n is too small for k = 0 a generalised Pareto tail is fitted by
probability-weighted moments (Hosking and Wallis 1987), and nothing is promised.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pipeline.data import Decision, Failure, Reason, Region, Scores, Verdict
from pipeline.decode import Decoded, Placement
from pipeline.errors import ArtifactError, FitError
from pipeline.guarantee import CONFIDENCE, Guarantee, allowed, check_rate, is_rate, needed, promise

REGIONS_MAX = 20
_TAIL_SHARE = 0.2
_TAIL_MIN = 10
_GOODS_MIN = 5
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Where a model version draws the line.

    Attributes:
        image: a frame is rejected when its score is strictly above.
        pixel: regions are where the map is strictly above.
        goods: (n,) float32, the calibration scores in ascending order; p-values come from them.
        guarantee: what `image` promises.
    """

    image: float
    pixel: float
    goods: NDArray[np.float32]
    guarantee: Guarantee

    @property
    def above(self) -> int:
        """How many calibration goods it would reject."""
        return int((self.goods > self.image).sum())

    def p_value(self, score: float) -> float:
        """(1 + #{calibration score >= score}) / (n + 1): conformal, in (0, 1].

        A good part's is at most a with probability a at most, equal scores or not, over parts and calibration sets
        together (Vovk, Gammerman and Shafer 2005). Rejected is what has (k + 1) / (n + 1) at most, if a rate is proved.
        """
        n = len(self.goods)
        at_least = n - int(np.searchsorted(self.goods, np.float32(score), side="left"))
        return (1 + at_least) / (n + 1)

    def to_meta(self) -> dict[str, Any]:
        """Everything but the calibration scores, as JSON."""
        g = self.guarantee
        return {
            "image": self.image,
            "pixel": self.pixel,
            "guarantee": {
                "holds": g.holds,
                "rate": g.rate,
                "confidence": g.confidence,
                "goods": g.goods,
                "allowed": g.allowed,
                "goods_needed": g.goods_needed,
            },
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], goods: Tensor) -> "Threshold":
        """The threshold that `to_meta` described.

        Raises:
            ArtifactError: a value is missing, of the wrong kind, not finite, or promises what the goods do not.
        """
        if goods.ndim != 1 or not len(goods) or not bool(goods.isfinite().all()):
            raise ArtifactError(f"the model's calibration scores must be (n,) and finite, not {tuple(goods.shape)}")
        try:
            image = msgspec.convert(meta["image"], float)
            pixel = msgspec.convert(meta["pixel"], float)
            guarantee = msgspec.convert(meta["guarantee"], Guarantee)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the model's threshold cannot be read: {error!r}") from error
        if not (math.isfinite(image) and math.isfinite(pixel)):
            raise ArtifactError(f"the model's threshold is not usable: image {image}, pixel {pixel}")
        if not (is_rate(guarantee.rate) and 0 < guarantee.confidence < 1):
            raise ArtifactError(f"the model's guarantee is none: rate {guarantee.rate} at {guarantee.confidence}")
        if guarantee != promise(len(goods), guarantee.rate, guarantee.confidence):
            raise ArtifactError(f"the model's guarantee is not what {len(goods)} calibration goods give: {guarantee}")
        threshold = cls(
            image=image, pixel=pixel, goods=np.sort(goods.to("cpu", torch.float32).numpy()), guarantee=guarantee
        )
        if guarantee.holds and threshold.above > guarantee.allowed:
            raise ArtifactError(
                f"the model's threshold is too low for its guarantee: {threshold.above} calibration goods lie above "
                f"{image}, {guarantee.allowed} may"
            )
        return threshold


def calibrate(scores: Scores, *, rate: float, confidence: float = CONFIDENCE) -> Threshold:
    """Thresholds from held-out good parts.

    Args:
        scores: of good frames that the model was not fitted on.
        rate: the share of good parts that may be rejected, in [1e-6, 0.5).
        confidence: probability, over calibration sets, with which the rate holds.

    Raises:
        ConfigError: another rate.
        FitError: fewer than 5 goods, or a score that is not finite.
    """
    check_rate(rate)
    goods = np.sort(scores.image.detach().cpu().numpy().astype(np.float32))
    peaks = scores.map.detach().flatten(1).amax(dim=1).cpu().numpy().astype(np.float32)
    n = len(goods)
    if n < _GOODS_MIN:
        raise FitError(
            f"{n} calibration goods; at least {_GOODS_MIN} are needed, {needed(rate, confidence)} to promise"
        )
    if not (np.isfinite(goods).all() and np.isfinite(peaks).all()):
        raise FitError("a calibration score is not finite: the model cannot be trusted")
    k = allowed(n, rate, confidence)
    image, pixel = (_cut(values, k, rate) for values in (goods, np.sort(peaks)))
    return Threshold(image=image, pixel=pixel, goods=goods, guarantee=promise(n, rate, confidence))


def decide(decoded: Decoded, scores: Scores, threshold: Threshold) -> tuple[list[Verdict], list[Failure]]:
    """A verdict for every decoded frame, in order; a score or a map that is not finite is a failure, never a pass."""
    verdicts, failures = [], []
    maps = scores.map.detach().cpu().numpy()
    lowest, highest = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))  # NaN where there is one
    finite = np.isfinite(lowest) & np.isfinite(highest)
    for i, (frame_id, score) in enumerate(zip(decoded.frame_ids, scores.image.tolist(), strict=True)):
        if not math.isfinite(score):
            failures.append(Failure(frame_id=frame_id, reason=Reason.ERROR, detail=f"the score is {score}"))
            continue
        if not finite[i]:
            failures.append(Failure(frame_id=frame_id, reason=Reason.ERROR, detail="the map is not finite"))
            continue
        verdicts.append(
            Verdict(
                frame_id=frame_id,
                decision=Decision.REJECT if score > threshold.image else Decision.PASS,
                score=score,
                threshold=threshold.image,
                p_value=threshold.p_value(score),
                regions=regions(maps[i], threshold.pixel, decoded.placements[i])
                if highest[i] > threshold.pixel
                else (),
            )
        )
    return verdicts, failures


def regions(scores: NDArray[np.float32], threshold: float, placement: Placement) -> tuple[Region, ...]:
    """Connected areas of a map (H, W) strictly above a threshold, the highest peak first, at most 20."""
    above = scores > threshold
    if not above.any():
        return ()
    labels, count = ndimage.label(above, structure=_EIGHT_NEIGHBOURS)
    places = ndimage.find_objects(labels)
    # A noisy map has thousands of areas: only the ones that are told are measured.
    peaks = np.full(count, -np.inf, scores.dtype)
    np.maximum.at(peaks, labels[above] - 1, scores[above])  # ndimage.maximum would sort the whole map
    found = []
    for at in np.argsort(-peaks, kind="stable")[:REGIONS_MAX]:
        rows, columns = where = places[at]
        inside = labels[where] == at + 1
        row, column = np.argwhere(inside & (scores[where] == peaks[at]))[0]
        found.append(
            Region(
                box=(
                    *_to_image(columns.start, rows.start, placement),
                    *_to_image(columns.stop, rows.stop, placement, up=True),
                ),
                peak=_to_image(columns.start + int(column) + 0.5, rows.start + int(row) + 0.5, placement),
                area_px=max(1, round(int(inside.sum()) * placement.step_x * placement.step_y)),
            )
        )
    return tuple(found)


def _to_image(x: float, y: float, placement: Placement, *, up: bool = False) -> tuple[int, int]:
    """A point of the map in whole image pixels, inside the picture."""
    height, width = placement.image_size
    whole = math.ceil if up else math.floor
    spare = 0 if up else 1
    image_x = whole(placement.x0 + x * placement.step_x)
    image_y = whole(placement.y0 + y * placement.step_y)
    return min(max(image_x, 0), width - spare), min(max(image_y, 0), height - spare)


def _cut(ascending: NDArray[np.float32], k: int | None, rate: float) -> float:
    """The (k+1)-th largest score, or the fitted tail's quantile where no k will do."""
    if k is not None:
        return float(ascending[-(k + 1)])
    return tail_quantile(ascending.astype(np.float64), rate)


def tail_quantile(ascending: NDArray[np.float64], rate: float) -> float:
    """Score exceeded with probability `rate`, by a generalised Pareto tail: no guarantee.

    The shape is kept in [0, 0.5]: a bounded tail (shape < 0) fitted to a dozen scores would promise that no good part
    ever scores higher, which a dozen cannot show.
    """
    n = len(ascending)
    tail = min(n - 1, max(_TAIL_MIN, math.ceil(_TAIL_SHARE * n)))
    if rate * n >= tail:
        return float(np.quantile(ascending, 1 - rate))
    start = float(ascending[n - tail - 1])
    excess = ascending[n - tail :] - start
    mean = float(excess.mean())
    if mean <= 0:
        return float(ascending[-1])
    ranks = (np.arange(1, tail + 1) - 0.35) / tail
    weighted = float(((1 - ranks) * excess).mean())
    shape = min(max(2 - mean / (mean - 2 * weighted), 0.0), 0.5) if mean > 2 * weighted else 0.5
    scale = mean * (1 - shape)
    ratio = rate * n / tail
    rise = -math.log(ratio) if shape < 1e-6 else (ratio**-shape - 1) / shape
    return start + scale * rise
