"""Three ways to keep a model: never again, every night from whatever passed, and Goldline's.

Each is told of the same parts, in the same order, with its own model's verdicts on them, and may change its model at
night. None sees what is there for measuring.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline import commissioning
from pipeline.commissioning import Commissioned
from pipeline.data import Decision, Frame
from pipeline.decode import Limits
from pipeline.errors import FitError
from workers.season.service import Seen, Service
from workers.season.world import Day, Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What a strategy did at the end of a day.

    Attributes:
        outcome: `nothing`, `live` (a refit went into service), `refused`, `paused` (drift) or `recalibrated`.
        learnt: ids of the parts that the model in service has learnt from that night.
        words: why, where it refused.
        alarms: of drift, which a person had to look at.
    """

    outcome: str = "nothing"
    learnt: tuple[str, ...] = ()
    words: str = ""
    alarms: int = 0


class Strategy(Protocol):
    """A way to keep a model."""

    name: str
    service: Service

    def saw(self, part: Part, seen: Seen) -> None:
        """A part was decided about."""
        ...

    def night(self, day: Day) -> Night:
        """The last shift is over."""
        ...


@dataclass(kw_only=True)
class NeverRefit:
    """What was commissioned stays."""

    service: Service
    name: str = "never refit"

    def saw(self, part: Part, seen: Seen) -> None:
        """Nothing is learnt from it."""

    def night(self, day: Day) -> Night:  # noqa: ARG002
        """Nothing happens."""
        return Night()


@dataclass(kw_only=True)
class NaiveNightly:
    """Every night a new model and threshold from the parts of the last days that passed, and straight into service.

    Attributes:
        made: how the first model was commissioned: the same method, settings and share for the threshold.
        recent_days: how far back it looks.
    """

    service: Service
    method: str
    config: Any
    rate: float
    seed: int
    recent_days: int = 7
    name: str = "naive nightly"
    _accepted: deque[list[Frame]] = field(default_factory=deque)
    _today: list[Frame] = field(default_factory=list)

    def saw(self, part: Part, seen: Seen) -> None:
        """What passed is taken for good."""
        if seen.verdict.decision is Decision.PASS:
            self._today.append(part.frame)

    def night(self, day: Day) -> Night:
        """`goldline fit` on what passed."""
        self._accepted.append(self._today)
        self._today = []
        while len(self._accepted) > self.recent_days:
            self._accepted.popleft()
        goods = [frame for each in self._accepted for frame in each]
        inspector = self.service.inspector
        try:
            made: Commissioned = commissioning.commission(
                goods,
                method=self.method,
                config=self.config,
                backbone=self.service.backbone,
                view=inspector.view,
                limits=Limits(),
                rate=self.rate,
                seed=self.seed + day.number,
            )
        except FitError as error:
            return Night(outcome="refused", words=str(error))
        self.service.take(made.inspector, why=f"night {day.number}")
        held_out = set(made.calibrated_on)
        return Night(outcome="live", learnt=_ids(f for f in goods if f.frame_id not in held_out))


def _ids(frames: Any) -> tuple[str, ...]:
    return tuple(frame.frame_id for frame in frames)


__all__: Sequence[str] = ["NaiveNightly", "NeverRefit", "Night", "Strategy"]
