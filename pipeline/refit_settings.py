"""`[refit]` of line.toml: which frames a refit may learn from, what it is held to, and who approves it."""

from typing import Annotated, Literal

from msgspec import Meta

from pipeline.settings_check import Section

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Approval = Literal["manual", "shadow-then-auto", "auto"]


class Rules(Section, frozen=True):
    """What a candidate is held to. Each defence can be turned off by the value that its line names.

    Attributes:
        frames_min: fewest usable frames of the pool.
        frames_max: most that one refit learns from, drawn by lot; more frames take more time.
        p_min: a frame that the model in service gives a lower p-value now is left out; 0 for none.
        folds: k of the out-of-bag scores: a frame is scored by a model that learnt from the others alone; 0 for none.
        outlier_deviations: how far above the median of these scores, in robust standard deviations, a frame may be.
        outliers_max: share of frames that may be left out before the pool as a whole is doubted.
        new_share_max: share of the model that may come from new frames; 1 for all.
        distance_max: how far beyond the median of golden goods, as the parent sees them, half of the new frames may
            lie; 1 is the golden goods' 95 % quantile.
        worse_at: level of the paired tests: a worse candidate is refused at a p-value of this or less.
        recall_lost_max: share of golden defects that may be lost, where there are enough to say.
        goods_min: fewest verified goods, of which neither model has learnt, to calibrate on.
        bank_max_bytes: largest model.
    """

    frames_min: Annotated[int, Meta(ge=2)] = 50
    frames_max: Annotated[int, Meta(ge=2, le=100_000)] = 500
    p_min: Share = 0.1
    folds: Annotated[int, Meta(ge=0, le=20)] = 5
    outlier_deviations: Annotated[float, Meta(gt=0.0)] = 4.0
    outliers_max: Share = 0.2
    new_share_max: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.25
    distance_max: Annotated[float, Meta(gt=0.0)] = 1.0
    worse_at: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.05
    recall_lost_max: Share = 0.01
    goods_min: Annotated[int, Meta(ge=10)] = 30
    bank_max_bytes: Annotated[int, Meta(ge=1)] = 512_000_000
