"""From a model in service and recently accepted frames to a candidate, and the review that accepts or refuses it.

Accepted is not the same as good, so that frames are doubted twice: by the model in service as it is now, and by models
that learnt from the other frames alone (out of bag). Accepted frames are cut off at the threshold that accepted them:
they never calibrate. The candidate's threshold comes from golden goods that neither fit has seen, or there is none.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import methods, review, screening
from pipeline.backbone import Backbone
from pipeline.commissioning import decode_all
from pipeline.data import Frame, Scores
from pipeline.decide import calibrate
from pipeline.decode import Decoded
from pipeline.errors import FitError
from pipeline.golden import Golden, distinct, draw, split
from pipeline.growth import Growth, look, out_of_bag, rows_of, way
from pipeline.guarantee import check_rate
from pipeline.inspection import Inspector
from pipeline.methods.base import Detector
from pipeline.progress import Progress, silent
from pipeline.refit_settings import Rules
from pipeline.review import Finding, Review

__all__ = ["Golden", "Refitted", "refit"]

_FOLDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Refitted:
    """What came of a refit.

    Attributes:
        candidate: the model with its threshold; None where a rule failed before there was one, or its threshold cannot
            be calibrated. It is there also where the review refuses it: to be looked at, not to be used.
        review: why it is accepted or refused.
        used: ids of the pool's frames that the candidate has learnt from.
        left_out: ids of those that were left out, and why each.
        fitted_on: ids of the golden goods that it has learnt from: of methods that are fitted anew.
        calibrated_on: ids of the golden goods that its threshold comes from.
        unreadable: ids of frames that could not be decoded.
        fit_s: wall seconds of it all.
    """

    candidate: Inspector | None
    review: Review
    used: tuple[str, ...] = ()
    left_out: dict[str, str]
    fitted_on: tuple[str, ...] = ()
    calibrated_on: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    fit_s: float = 0.0


def refit(
    parent: Inspector,
    pool: Sequence[Frame],
    golden: Golden,
    *,
    backbone: Backbone,
    rules: Rules = Rules(),  # noqa: B008 - frozen
    anchor: Inspector | None = None,
    rate: float | None = None,
    seed: int = 0,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Refitted:
    """A candidate that has learnt from the pool, and its review. Nothing is stored, `parent` stays as it is.

    PaDiM and PatchCore grow from the parent's own state (`incremental`), where it is not tiled; other methods are
    fitted anew, on golden goods and the pool.

    Args:
        parent: the model in service.
        pool: usable frames of the pool: out of quarantine, of no part that is reported as defective.
        golden: verified goods and defects; either may be missing, and then the review says what it could not check.
        backbone: the one that the parent stands on.
        rules: what the candidate is held to.
        anchor: the last model that a person approved, where that is not the parent: what is lost of the golden defects
            is counted against it as well, so that many small losses do not add up unseen.
        rate: the share of good parts that may be rejected; the parent's by default.
        seed: of the lots that are drawn, and of a fit anew. The same seed gives the same candidate.
        scratch: a folder for checkpoints of a long training.
        progress: called as `progress(stage, done, total)`.

    Raises:
        ConfigError: a rate that is none.
    """
    started = time.perf_counter()
    rate = parent.threshold.guarantee.rate if rate is None else rate
    check_rate(rate)
    saved = parent.detector.save()
    how = way(saved.method, parent.detector)
    learnt, held_out = split(golden, anew=how == "anew")
    drawn, left_out = draw(pool, golden, rules.frames_max, seed)
    base, goods, defects, frames = (
        decode_all(each, parent.view, parent.limits, progress, parent.device)
        for each in (learnt, held_out, distinct(golden.defects), drawn)
    )
    growth = Growth(
        parent=parent,
        how=how,
        method=saved.method,
        config=methods.make_config(saved.method, saved.meta["config"]),
        backbone=backbone,
        base=base.images.pixels,
        new_share_max=rules.new_share_max,
        seed=seed,
        scratch=scratch,
        progress=progress,
    )
    made = _Candidate(findings=[review.calibration(len(goods.frame_ids), parent.threshold.guarantee, rate, rules)])
    kept = list(range(len(frames.frame_ids)))
    if made.passes and len(kept) >= rules.frames_min:
        kept = _doubt(made, growth, frames, rules, left_out)
    made.findings.append(review.enough_frames(len(kept), len(pool), rules))
    if made.passes:
        _fit(made, growth, frames, kept)
    if made.detector is not None:
        _judge(made, parent, anchor, frames, goods, defects, rules, rate, progress)
    return Refitted(
        candidate=made.inspector,
        review=Review(
            findings=review.in_full(made.findings),
            how=growth.how,
            pool=len(pool),
            used=len(made.used),
            recall_lost=made.recall_lost,
        ),
        used=tuple(made.used),
        left_out=left_out,
        fitted_on=base.frame_ids if made.detector is not None else (),
        calibrated_on=goods.frame_ids if made.inspector is not None else (),
        unreadable=tuple(f.frame_id for each in (frames, base, goods, defects) for f in each.failures),
        fit_s=time.perf_counter() - started,
    )


@dataclass(slots=True)
class _Candidate:
    """A candidate in the making."""

    findings: list[Finding]
    detector: Detector | None = None
    inspector: Inspector | None = None
    used: tuple[str, ...] = ()
    recall_lost: float | None = None

    @property
    def passes(self) -> bool:
        return all(finding.outcome != "failed" for finding in self.findings)


def _doubt(made: _Candidate, growth: Growth, frames: Decoded, rules: Rules, left_out: dict[str, str]) -> list[int]:
    """Places of the frames that neither the parent nor the other frames speak against."""
    pixels, parent = frames.images.pixels, growth.parent
    scores = look(parent.detector, pixels, growth.progress, "pool").scores.image
    p = [parent.threshold.p_value(score) for score in scores.tolist()]
    kept = [i for i in range(len(p)) if p[i] >= rules.p_min and math.isfinite(float(scores[i]))]
    for i in set(range(len(p))) - set(kept):
        left_out[frames.frame_ids[i]] = f"the model in service gives it p = {p[i]:.3g} now"
    why = f"the model in service gives them p below {rules.p_min:g} now"
    made.findings.append(review.left_out("parent", len(p) - len(kept), len(p), rules.outliers_max, why))
    if rules.folds < 2:
        made.findings.append(review.not_checked("outliers", "no folds to score frames out of bag: `folds` is 0"))
        return kept
    if len(kept) < max(rules.frames_min, rules.folds):
        return kept
    out = screening.outliers(out_of_bag(growth, rows_of(frames, kept), rules.folds), rules.outlier_deviations)
    for i in (kept[at] for at in out.nonzero().flatten().tolist()):
        left_out[frames.frame_ids[i]] = "it is unlike the other frames"
    why = f"out of bag in {rules.folds} folds they are unlike the others"
    made.findings.append(review.left_out("outliers", int(out.sum()), len(kept), rules.outliers_max, why))
    return [i for at, i in enumerate(kept) if not bool(out[at])]


def _fit(made: _Candidate, growth: Growth, frames: Decoded, kept: list[int]) -> None:
    try:
        grown = growth.candidate(rows_of(frames, kept))
    except FitError as error:
        made.findings.append(Finding(rule="fit", outcome="failed", words=str(error)))
        return
    made.detector = grown.detector
    made.used = tuple(frames.frame_ids[kept[i]] for i in grown.taken)
    made.findings.append(review.new_share(grown.new_share, growth.new_share_max))


def _judge(
    made: _Candidate,
    parent: Inspector,
    anchor: Inspector | None,
    frames: Decoded,
    goods: Decoded,
    defects: Decoded,
    rules: Rules,
    rate: float,
    progress: Progress,
) -> None:
    """Calibrate the candidate, and hold it beside its parent."""
    detector = made.detector
    assert detector is not None  # noqa: S101 - it was fitted
    used = set(made.used)
    new = rows_of(frames, [i for i, frame_id in enumerate(frames.frame_ids) if frame_id in used])
    before = look(parent.detector, goods.images.pixels, progress, "golden goods")
    after = look(detector, goods.images.pixels, progress, "golden goods")
    try:
        threshold = calibrate(after.scores, rate=rate)
    except FitError as error:
        made.findings.append(Finding(rule="fit", outcome="failed", words=str(error)))
        return
    made.inspector = Inspector(
        detector, threshold, parent.view, parent.limits, shares=parent.shares, device=parent.device
    )
    bytes_after, bytes_before = (_size_bytes(each) for each in (detector, parent.detector))
    caught = [
        look(each.detector, defects.images.pixels, progress, "golden defects").scores.image.numpy()
        > each.threshold.image
        for each in (parent, made.inspector, *([anchor] if anchor else []))
    ]
    near = [number.double().numpy() for number in before.numbers()]
    far = [number.double().numpy() for number in look(parent.detector, new, progress, "distance").numbers()]
    made.findings += [
        review.distance(far, near, rules),
        review.size(bytes_after, bytes_before, rules),
        review.goods(before.scores.image.numpy() > parent.threshold.image, _rejected_unseen(after.scores, rate), rules),
        review.defects(caught[0], caught[1], rules),
        review.lost("lost defects", caught[0], caught[1], rules, "the model in service"),
    ]
    if anchor:
        whose = "the model that a person approved last"
        made.findings.append(review.lost("lost since approval", caught[2], caught[1], rules, whose))
    made.recall_lost = review.recall_lost(caught[0], caught[1])


def _rejected_unseen(scores: Scores, rate: float) -> NDArray[np.bool_]:
    """Which goods (N,) a threshold from the others rejects: their own would have made place for them."""
    n = len(scores.image)
    place = torch.arange(n) % _FOLDS
    rejected = np.zeros(n, dtype=bool)
    for fold in range(_FOLDS):
        held = place == fold
        threshold = calibrate(Scores(scores.image[~held], scores.map[~held]), rate=rate)
        rejected[held.numpy()] = (scores.image[held] > threshold.image).numpy()
    return rejected


def _size_bytes(detector: Detector) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in detector.save().tensors.values())
