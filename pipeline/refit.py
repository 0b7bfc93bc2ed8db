"""From a model in service and recently accepted frames to a candidate, and the review that accepts or refuses it.

Accepted is not the same as good, so that frames are doubted twice: by the model in service as it is now, and by models
that learnt from the other frames alone (out of bag). Accepted frames are cut off at the threshold that accepted them:
they never calibrate. The candidate's threshold comes from golden goods that neither fit has seen, or there is none.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.backbone import Backbone
from pipeline.data import Frame
from pipeline.inspection import Inspector
from pipeline.progress import Progress, silent
from pipeline.refit_settings import Rules
from pipeline.review import Review


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Frames that a person verified, whatever a verdict on them was.

    Attributes:
        goods: of good parts, one for each part, chosen by no threshold.
        defects: of defective parts; no model ever learns from them.
        learnt: sha256 of pictures (all digits, or the first 12) that the parent, or a model that it comes from, was
            fitted on: goods among them cannot calibrate.
    """

    goods: Sequence[Frame] = ()
    defects: Sequence[Frame] = ()
    learnt: Collection[str] = ()


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
    raise NotImplementedError
