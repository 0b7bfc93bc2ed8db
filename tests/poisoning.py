"""Attacks on a refit by defective parts that passed: some among many good ones, or all a little worse each day.

The pool, the refit and its review are the real ones; each defence can be left out. A refit counts as live where no rule
of its review failed. Recall is that of the model's own threshold; harm is measured on defects that no rule knows: by
the golden ones a review refuses. Whatever is random follows from a seed.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from model_store import ModelKey
from model_store.pool import DiskPool
from model_store.pool_records import Candidate, Feedback
from pipeline import commissioning, methods
from pipeline.appearance import measure
from pipeline.backbone import Backbone
from pipeline.data import Decision, Frame, Scores
from pipeline.decode import Limits, decode
from pipeline.drift import Drift
from pipeline.inspection import Inspector
from pipeline.refit import Golden, Refitted, refit
from pipeline.refit_settings import Rules
from pipeline.settings import Pool
from pipeline.synthetic import encode
from pipeline.view import View
from tests.attack_pictures import Pictures, blend

KEY = ModelKey("line-1/top")
DAYS = 10
POINT = 0.01
POINT_NEEDS = 100  # defects, for a point of recall
RATE = 0.05
_START = datetime(2025, 3, 3, tzinfo=UTC)
_SETTINGS = {"coreset": "0.1", "images": "10", "epochs": "5"}

OFF: dict[str, dict[str, Any]] = {  # which defence is left out -> the rules without it
    "nothing": {},
    "second look": {"p_min": 0.0},
    "out of bag": {"folds": 0},
    "share of the new": {"new_share_max": 1.0},
    "distance": {"distance_max": 1e9},
    "golden defects": {},
    "approved anchor": {},
    "drift monitors": {},
    "all": {"p_min": 0.0, "folds": 0, "new_share_max": 1.0, "distance_max": 1e9},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an attack.

    Attributes:
        poison: defective parts that the pool was offered; `pooled`: that it took; `learnt`: that live models learnt.
        tried: refits; `live`: those that went live; `harmful`: of these, those that lost more than a point of recall
            against the first model, by more than chance; see `Target.harmed`.
        lost: golden defects that the first model catches and the last live one does not; `found`: the other way round;
            likewise `others_lost` and `others_found`.
        alarmed: whether the drift monitors were raised, which stops refits.
        refused: rules that refused, and how often.
    """

    poison: int
    pooled: int
    learnt: int
    tried: int
    live: int
    harmful: int
    lost: int
    found: int
    others_lost: int
    others_found: int
    alarmed: bool = False
    refused: dict[str, int] = field(default_factory=dict)


class Target:
    """A model in service, and what is known beside it: where every attack on it begins."""

    def __init__(self, pictures: Pictures, method: str, backbone: Backbone, *, seed: int = 0) -> None:
        made = commissioning.commission(
            pictures.goods,
            method=method,
            config=methods.make_config(method, methods.settings_for(method, _SETTINGS), quick=True),
            backbone=backbone,
            view=View(size=pictures.size),
            limits=Limits(),
            rate=RATE,
            calibrate_share=0.4,
            seed=seed,
        )
        held_out = set(made.calibrated_on)
        self.pictures, self.backbone, self.seed = pictures, backbone, seed
        self.model = made.inspector
        self.learnt = {sha256(frame) for frame in pictures.goods if frame.frame_id not in held_out}
        self.caught = {kind: rejects(self.model, getattr(pictures, kind)) for kind in ("golden", "others")}
        unlike = dict(zip((f.frame_id for f in pictures.defects), scores(self.model, pictures.defects), strict=True))
        self.missed = sorted(pictures.defects, key=lambda frame: unlike[frame.frame_id])  # those that pass come first

    def rules(self, off: str, frames: int) -> Rules:
        """Those of line.toml, for a pool of so many frames, without a defence."""
        defaults = Rules(frames_min=min(50, frames // 2), frames_max=max(500, frames))
        return msgspec.structs.replace(defaults, **OFF[off])

    def refitted(self, parent: Inspector, frames: Sequence[Frame], off: str) -> Refitted:
        """A candidate from these frames of the pool, and its review."""
        golden = Golden(
            goods=self.pictures.goods,
            defects=() if off in {"golden defects", "all"} else self.pictures.golden,
            learnt=self.learnt,
        )
        return refit(
            parent,
            frames,
            golden,
            backbone=self.backbone,
            rules=self.rules(off, len(frames)),
            anchor=None if parent is self.model or off in {"approved anchor", "all"} else self.model,
            seed=self.seed,
        )

    def change(self, model: Inspector, kind: str) -> tuple[int, int]:
        """Defects that the first model catches and this one does not, and the other way round."""
        before, after = self.caught[kind], rejects(model, getattr(self.pictures, kind))
        return int((before & ~after).sum()), int((after & ~before).sum())

    def recall_lost(self, model: Inspector) -> tuple[float, float]:
        """Share of the independent defects that a model catches less than the first one, and its standard error."""
        lost, found = self.change(model, "others")
        n = len(self.pictures.others)
        share = (lost - found) / n
        return share, float(np.sqrt(((lost + found) / n - share**2) / n))

    def harmed(self, model: Inspector) -> bool:
        """Whether more than a point of recall is lost, with 95 % certainty."""
        share, error = self.recall_lost(model)
        return share - 1.645 * error > POINT


def missed_defects(target: Target, share: float, off: str, *, reported: float = 0.0) -> Outcome:
    """A share of the pool's frames, at least one, is defective parts that the model passes, least of all noticed.

    Args:
        target: what is attacked.
        share: of the frames that are offered.
        off: the defence that is left out.
        reported: share of the defective parts that somebody finds while they are in quarantine.
    """
    goods = target.pictures.line
    poison = target.missed[: max(1, round(share * len(goods) / (1 - share)))]
    rng = Random(target.seed)
    found = [frame for frame in poison if rng.random() < reported]
    with _pool(target.rules(off, len(goods)).p_min) as pool:
        offer(pool, target.model, [*goods, *poison], _START)
        said = [Feedback(part_id=f.frame_id, verdict="defect", by="final inspection", at=_START) for f in found]
        pool.report(said, at=_START + timedelta(hours=12))
        usable = frames_of(pool, _START + timedelta(hours=25))
    made = target.refitted(target.model, usable, off)
    return _outcome(target, poison, [made], usable)


def slow_drift(target: Target, off: str, *, days: int = DAYS, a_day: int = 60) -> Outcome:
    """Every part has a defect, a little plainer each day, until it is as plain as the golden ones; a refit every night.

    The golden set stays, a person at the audit would not call these parts good.
    """
    pictures, rng = target.pictures, Random(target.seed)
    model, tried, used, offered = target.model, [], [], []
    drift = Drift(0.01, rng=rng)
    watched = off not in {"drift monitors", "all"}
    alarmed = watched and _look(drift, model, pictures.line)  # the baseline: good parts
    with _pool(target.rules(off, a_day).p_min) as pool:
        for day in range(1, days + 1):
            at = _START + timedelta(days=day)
            pairs = [pictures.worse[rng.randrange(len(pictures.worse))] for _ in range(a_day)]
            frames = [
                Frame(frame_id=f"day-{day}-{k}", image=encode(blend(*pair, day / days))) for k, pair in enumerate(pairs)
            ]
            offered += frames
            alarmed = alarmed or (watched and _look(drift, model, frames))
            offer(pool, model, frames, at)
            if alarmed:
                continue
            used = frames_of(pool, at + timedelta(hours=25))
            made = target.refitted(model, used, off)
            tried.append(made)
            if made.candidate is not None and made.review.passed:
                model = made.candidate
    return _outcome(target, offered, tried, used, alarmed=alarmed)


def _outcome(
    target: Target,
    poison: Sequence[Frame],
    tried: Sequence[Refitted],
    pooled: Sequence[Frame],
    *,
    alarmed: bool = False,
) -> Outcome:
    live = [made for made in tried if made.candidate is not None and made.review.passed]
    models = [made.candidate for made in live if made.candidate is not None]
    last = models[-1] if models else target.model
    bad = {frame.frame_id for frame in poison}
    failed = Counter(each.rule for made in tried for each in made.review.findings if each.outcome == "failed")
    (lost, found), (others_lost, others_found) = (target.change(last, kind) for kind in ("golden", "others"))
    return Outcome(
        poison=len(bad),
        pooled=sum(frame.frame_id in bad for frame in pooled),
        learnt=len(bad & {frame_id for made in live for frame_id in made.used}),
        tried=len(tried),
        live=len(live),
        harmful=sum(target.harmed(model) for model in models),
        lost=lost,
        found=found,
        others_lost=others_lost,
        others_found=others_found,
        alarmed=alarmed,
        refused=dict(failed),
    )


@contextmanager
def _pool(p_min: float) -> Iterator[DiskPool]:
    """A pool in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="goldline-poisoning-") as folder:
        pool = DiskPool(Path(folder) / "pool", Pool(p_min=p_min))
        pool.create()
        yield pool


def offer(pool: DiskPool, model: Inspector, frames: Sequence[Frame], at: datetime) -> None:
    """What a worker does after its verdicts."""
    for frame, score in zip(frames, scores(model, frames), strict=True):
        decision = Decision.REJECT if score > model.threshold.image else Decision.PASS
        pool.admit(
            Candidate(
                key=KEY,
                frame_id=frame.frame_id,
                part_id=frame.frame_id,
                captured_at=at,
                image=frame.image,
                decision=decision,
                score=score,
                p_value=model.threshold.p_value(score),
                model="0" * 64,
            ),
            at=at,
        )


def frames_of(pool: DiskPool, at: datetime) -> list[Frame]:
    """What a refit may learn from by then."""
    return [Frame(frame_id=p.entry.frame_id, image=pool.read(p)) for p in pool.usable(KEY, at=at)]


def scores(model: Inspector, frames: Sequence[Frame]) -> list[float]:
    """Of each frame."""
    return [float(score) for batch in _decoded(model, frames) for score in _scored(model, batch).image]


def rejects(model: Inspector, frames: Sequence[Frame]) -> NDArray[np.bool_]:
    """Which frames the model rejects, (N,)."""
    return np.array(scores(model, frames)) > model.threshold.image


def _look(drift: Drift, model: Inspector, frames: Sequence[Frame]) -> bool:
    """Whether the station's monitors raise an alarm."""
    raised = []
    for batch in _decoded(model, frames):
        for appearance, score in zip(measure(batch), _scored(model, batch).image.tolist(), strict=True):
            passed = score if score <= model.threshold.image else None
            raised += drift.see(appearance, score=passed, version="v", at=_START, frame_id="")
    return bool(raised)


def _decoded(model: Inspector, frames: Sequence[Frame]) -> Iterator[torch.Tensor]:
    for at in range(0, len(frames), 16):
        decoded = decode(frames[at : at + 16], model.view, model.limits)
        assert not decoded.failures
        yield decoded.images.pixels


def _scored(model: Inspector, pixels: torch.Tensor) -> Scores:
    return model.detector.score(model.detector.embed(pixels))


def sha256(frame: Frame) -> str:
    """Of the encoded picture."""
    return hashlib.sha256(frame.image).hexdigest()
