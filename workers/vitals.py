"""A worker's health: whether it is alive, and whether it can do its work."""

from collections.abc import Callable, Iterator

from pipeline.settings import Settings
from workers.health import Check, Heart
from workers.inspect import Lanes
from workers.live import Models
from workers.pass_all import PassAll


class Vitals:
    """What a worker's health is read from. Its parts come into being one after another: until then it is not ready.

    Live: the event loop turns, and no frame has been waited for longer than `[worker] stuck_s`. A broker that is away
    leaves a worker alive: it waits for it like everybody else.

    Ready: the group has given the worker its partitions, what was answered before is known, and the models of their
    stations are in memory, unless none is promoted or one is loaded only when a frame asks for it.
    """

    def __init__(self, settings: Settings, models: Models | PassAll) -> None:
        self.heart = Heart()
        self._settings = settings
        self._models = models
        self._lanes: Lanes | None = None
        self._assigned: Callable[[], set[int]] = set

    def watch(self, lanes: Lanes, assigned: Callable[[], set[int]]) -> None:
        """From now on there are lanes to look at.

        Args:
            lanes: of the worker.
            assigned: the partitions that it has.
        """
        self._lanes, self._assigned = lanes, assigned

    def live(self) -> list[Check]:
        """Whether the process should go on."""
        if self._lanes is None:
            return [Check("start", ok=True, detail="models are being loaded")]
        waited_s, most_s = self._lanes.undecided_s(), self._settings.worker.stuck_s
        waits = f"waited for {waited_s:.1f} s, {most_s:.0f} s at most"
        return [self.heart.alive(), Check("next_frame", waited_s < most_s, waits)]

    def ready(self) -> list[Check]:
        """Whether frames of its stations are inspected."""
        lanes = self._lanes
        if lanes is None:
            return [Check("start", ok=False, detail="models are being loaded")]
        partitions, recovering = self._assigned(), lanes.recovering()
        there = f"partitions {', '.join(map(str, sorted(partitions))) or 'none'}"
        return [
            Check("group", lanes.joined, there if lanes.joined else "not joined yet"),
            Check("recovery", not recovering, f"partitions {recovering} under way" if recovering else ""),
            *self._models_of(partitions),
        ]

    def _models_of(self, partitions: set[int]) -> Iterator[Check]:
        own = {name for name, partition in self._settings.partitions().items() if partition in partitions}
        for state in self._models.states():
            if state.key.station in own:
                yield Check(f"model {state.key}", state.ok, state.detail)
