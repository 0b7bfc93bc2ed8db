"""A refit of one station and recipe, from its pool to a stored candidate, and what becomes of that.

Nothing is current until the last step, a promotion, which is one step in the store. So whatever stops a refit, at
whatever moment, leaves the model in service as it is; the next one begins anew. A lease keeps two from the same work.
"""

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from model_store import (
    ITSELF,
    ModelKey,
    ModelStore,
    Version,
    approved_last,
    open_store,
    resolve_version,
    short,
    withdraw,
)
from model_store.leases import Lease, open_leases
from model_store.pool import DiskPool, open_pool
from pipeline import refit as fitting
from pipeline.backbone_spec import BackboneSpec
from pipeline.data import JSON
from pipeline.decode import Limits
from pipeline.golden import Golden
from pipeline.inspection import Inspector
from pipeline.progress import Progress, silent
from pipeline.refit import Refitted
from pipeline.refit_settings import Approval
from pipeline.review import Review, in_full, not_checked
from pipeline.settings import Settings
from workers import approval, provenance, refit_sources
from workers.backbones import opener
from workers.refit_sources import Drifting, Source

What = Literal["promoted", "on trial", "stored", "dry run", "refused", "trial goes on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a refit.

    Attributes:
        version: the candidate, where it was stored.
        words: for people: what happened, and what a person has to do now.
        left_out: ids of the pool's frames that were left out, and why each.
    """

    key: ModelKey
    what: What
    words: str
    version: Version | None = None
    parent: Version | None = None
    review: Review | None = None
    left_out: dict[str, str] | None = None

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "station": self.key.station,
            "recipe": self.key.recipe,
            "outcome": self.what,
            "words": self.words,
            "version": self.version,
            "parent": self.parent,
            "review": msgspec.to_builtins(self.review),
            "reasons": list(self.review.reasons) if self.review else [],
            "left_out": self.left_out or {},
        }


def refit(
    settings: Settings,
    key: ModelKey,
    *,
    who: str,
    why: str = "",
    golden: Path | None = None,
    approve: Approval | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Decide about a candidate on trial, where there is one; else make one, review it, and do what its approval says.

    Args:
        settings: of the line.
        key: station and recipe.
        who: asks for it.
        why: in their words.
        golden: folder of the golden set, if not the one in settings.
        approve: how, if not as in settings.
        dry_run: review it, and store nothing.
        progress: called as `progress(stage, done, total)`.

    Raises:
        LeaseTaken: another process refits it.
        ModelNotFound: no model is in service there.
        ConfigError: the settings name no pool, or the golden set cannot be used.
        StoreUnavailable: the store or the pool is away.
    """
    store = open_store(settings.store.url)
    parent = resolve_version(store, key, "current")
    by = f"{who}@{socket.gethostname()}, process {os.getpid()}"
    with open_leases(settings.store.url).hold(f"refit/{key.station}/{key.recipe}", who=by) as lease:
        tried = None if dry_run else approval.on_trial(store, key)
        if tried is not None:
            decided = approval.decide_trial(settings, store, open_pool(settings.pool), key, tried)
            return Outcome(key=key, what=decided.what, words=decided.words, version=tried, parent=parent)
        made = _Refit(settings, store, open_pool(settings.pool), key, parent, lease)
        return made.run(who, why, golden, approve or settings.refit.approval, dry_run=dry_run, progress=progress)


class _Refit:
    """One refit, while its lease is held."""

    def __init__(
        self, settings: Settings, store: ModelStore, pool: DiskPool, key: ModelKey, parent: Version, lease: Lease
    ) -> None:
        self._settings = settings
        self._store = store
        self._pool = pool
        self._key = key
        self._parent = parent
        self._lease = lease
        self._lineage = provenance.lineage_of(store, key, parent)
        approved = approved_last(store.history(key))
        self._anchor = approved if approved in {info.version for info in store.versions(key)} else None

    def run(
        self, who: str, why: str, folder: Path | None, approve: Approval, *, dry_run: bool, progress: Progress
    ) -> Outcome:
        drift = refit_sources.drifting(self._settings, self._key)
        if drift.finding.outcome == "failed":
            review = Review(findings=(drift.finding, *in_full(())))
            return self._told("refused", f"refused: {review.reasons[0]}", review=review)
        golden = refit_sources.golden_set(self._settings, self._key, folder, self._lineage)
        rules = self._settings.refit.rules
        sources, usable = refit_sources.pooled_frames(self._pool, self._key, drift.windows, rules.frames_max)
        made = self._fit(sources, golden, progress)
        review = self._reviewed(made, drift, usable)
        if dry_run or made.candidate is None:
            refused = "refused: " + "; ".join(review.reasons)
            words = "it would be accepted" if review.passed else refused
            return self._told("dry run" if review.passed else "refused", words, review=review, made=made)
        self._lease.require()
        version = self._store.put(
            self._key, made.candidate.save(), lineage=self._candidates_lineage(made, review, sources, golden, who, why)
        )
        if not review.passed:
            reasons = "; ".join(review.reasons)
            withdraw(self._store, self._key, version, who=ITSELF, why=f"review: {reasons}"[:1000])
            return self._told("refused", f"refused: {reasons}", version=version, review=review, made=made)
        decided = approval.after_review(
            self._settings, self._store, self._pool, self._key, version, self._parent, review, approve
        )
        return self._told(decided.what, decided.words, version=version, review=review, made=made)

    def _fit(self, sources: list[Source], golden: Golden, progress: Progress) -> Refitted:
        opened = opener(self._settings, self._settings.refit.device)
        limits = Limits(max_pixels=self._settings.frames.max_pixels, formats=tuple(self._settings.frames.formats))

        def load(version: Version) -> tuple[Inspector, BackboneSpec]:
            artifact = self._store.get(self._key, version)
            loaded = Inspector.load(artifact, open_backbone=opened, limits=limits)
            return loaded, BackboneSpec.from_meta(artifact.meta["backbone"])

        parent, spec = load(self._parent)
        return fitting.refit(
            parent,
            [source.frame for source in sources],
            golden,
            backbone=opened(spec),
            rules=self._settings.refit.rules,
            anchor=load(self._anchor)[0] if self._anchor and self._anchor != self._parent else None,
            progress=progress,
        )

    def _reviewed(self, made: Refitted, drift: Drifting, usable: int) -> Review:
        """With what the line alone knows."""
        findings = [drift.finding, *made.review.findings]
        if not self._lineage.pictures:
            words = "which pictures the model in service was fitted on is not known: its lineage lists none"
            findings.append(not_checked("provenance", words))
        if self._anchor is None:
            words = "the model that a person approved last is stored no more, or none ever was: nothing to compare with"
            findings.append(not_checked("lost since approval", words))
        return msgspec.structs.replace(made.review, findings=tuple(findings), pool=usable)

    def _candidates_lineage(
        self, made: Refitted, review: Review, sources: list[Source], golden: Golden, who: str, why: str
    ) -> dict[str, JSON]:
        used, fitted_on = set(made.used), set(made.fitted_on)
        learnt = [source for source in sources if source.frame.frame_id in used]
        frames = [source.frame for source in learnt]
        goods = [frame for frame in golden.goods if frame.frame_id in fitted_on]
        calibrated = set(made.calibrated_on)
        return {
            "created_at": datetime.now(UTC).isoformat(),
            "created_by": who,
            "why": why,
            "dataset": provenance.digest([*frames, *goods]),
            "frames": {
                "fit": len(frames) + len(goods),
                "tune": 0,
                "calibrate": len(calibrated),
                "unreadable": len(made.unreadable),
            },
            "calibration": provenance.digest([frame for frame in golden.goods if frame.frame_id in calibrated]),
            "pictures": provenance.grown(self._lineage.pictures, provenance.pictures([*frames, *goods])),
            "parent": self._parent,
            "method": self._lineage.method,
            "settings": dict(self._lineage.settings),
            "backbone": self._lineage.backbone,
            "code": metadata.version("goldline"),
            "refit": review.how,
            "pool": provenance.digest(frames),
            "pool_frames": [frame.frame_id for frame in frames],
            "pool_parts": provenance.grown(
                provenance.parts(self._lineage), [provenance.part(source.pooled.entry.part_id) for source in learnt]
            ),
            "review": msgspec.to_builtins(review),
        }

    def _told(
        self,
        what: What,
        words: str,
        *,
        review: Review,
        version: Version | None = None,
        made: Refitted | None = None,
    ) -> Outcome:
        return Outcome(
            key=self._key,
            what=what,
            words=f"{short(version)}: {words}" if version else words,
            version=version,
            parent=self._parent,
            review=review,
            left_out=made.left_out if made else {},
        )
