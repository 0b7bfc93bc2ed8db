"""`[refit]` of line.toml: which frames a refit may learn from, what it is held to, and who approves it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import Meta

from pipeline.errors import ConfigError
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
        defects_min: fewest golden defects that the model in service catches, to say anything about misses; of fewer a
            loss refuses, but none is no pass.
        goods_min: fewest verified goods, of which neither model has learnt, to calibrate on.
        bank_max_bytes: largest model.
    """

    frames_min: Annotated[int, Meta(ge=2)] = 50
    frames_max: Annotated[int, Meta(ge=2, le=5000)] = 200
    p_min: Share = 0.1
    folds: Annotated[int, Meta(ge=0, le=20)] = 5
    outlier_deviations: Annotated[float, Meta(gt=0.0)] = 4.0
    outliers_max: Share = 0.2
    new_share_max: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.25
    distance_max: Annotated[float, Meta(gt=0.0)] = 1.0
    worse_at: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.05
    recall_lost_max: Share = 0.01
    defects_min: Annotated[int, Meta(ge=1)] = 20
    goods_min: Annotated[int, Meta(ge=10)] = 30
    bank_max_bytes: Annotated[int, Meta(ge=1)] = 512_000_000


class Refit(Section, frozen=True):
    """When a refit is made and what becomes of its candidate.

    Attributes:
        golden: folder of golden sets: STATION/RECIPE/good and STATION/RECIPE/defect in it.
        schedule: five fields of cron, in the machine's local time; None for never.
        shadow_frames: that both models must have decided about, in a trial of `shadow_h` hours at least.
        shadow_rejects: of these frames, that the model in service must have rejected.
        differ_max: share of the frames whose verdicts may differ.
        passes_max: share of the rejects of the model in service that the candidate may pass.
        threads: that a refit computes with, beside a worker that must not wait.
    """

    golden: str | None = None
    approval: Approval = "manual"
    schedule: str | None = None
    shadow_frames: Annotated[int, Meta(ge=1)] = 1000
    shadow_h: Annotated[float, Meta(ge=0.0)] = 24.0
    shadow_rejects: Annotated[int, Meta(ge=1)] = 10
    differ_max: Share = 0.01
    passes_max: Share = 0.1
    device: str = "cpu"
    threads: Annotated[int, Meta(ge=1)] = 1
    rules: Rules = Rules()

    def contradictions(self) -> Iterator[str]:
        """What no type can say is wrong."""
        if self.schedule:
            try:
                next_run(self.schedule, datetime.now(UTC))
            except ConfigError as error:
                yield str(error)
        if self.rules.frames_min > self.rules.frames_max:
            least, most = self.rules.frames_min, self.rules.frames_max
            yield f"refit.rules: frames_min {least} is above frames_max {most}"


def next_run(schedule: str, after: datetime) -> datetime:
    """When a schedule comes to its next time, strictly after another.

    Args:
        schedule: five fields of cron.
        after: the answer is in its time zone, or likewise without one.

    Raises:
        ConfigError: it is no schedule.
    """
    from cronsim import CronSim, CronSimError  # noqa: PLC0415 - who has no schedule need not have it

    try:
        return next(CronSim(schedule, after))
    except (CronSimError, StopIteration) as error:
        raise ConfigError(
            f"refit.schedule: {schedule!r} is no time of cron ({error or 'it never comes'}); "
            '"0 3 * * *" is every night at three'
        ) from error
