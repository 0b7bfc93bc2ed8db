"""In place of models, for measuring the walk alone: every frame passes at once, undecoded."""

from collections.abc import Sequence

from model_store import Version
from pipeline.data import Decision, Frame, Verdict
from pipeline.inspection import Inspected
from workers.live import State
from workers.shelf import Live


class PassAll:
    """In place of the models: passes every frame at once, undecoded."""

    def __init__(self) -> None:
        self._live = Live(_PassAll(), "none", Version("0" * 64))

    def find(self, station: str, recipe: str) -> Live:  # noqa: ARG002
        """The same for every station."""
        return self._live

    def trial(self, station: str, recipe: str) -> None:
        """Nothing is tried."""

    def load(self, station: str, recipe: str) -> None:
        """Nothing to wait for."""

    def states(self) -> list[State]:
        """There is nothing that could be wrong."""
        return []

    def start(self) -> None:
        """Nothing to load."""

    def stop(self) -> None:
        """Nothing to stop."""


class _PassAll:
    def inspect(self, frames: Sequence[Frame]) -> Inspected:
        verdicts = tuple(
            Verdict(frame_id=f.frame_id, decision=Decision.PASS, score=0.0, threshold=1.0, p_value=1.0) for f in frames
        )
        return Inspected(
            verdicts=verdicts,
            failures=(),
            maps={},
            placements={},
            seconds={"decode": 0.0, "embed": 0.0, "score": 0.0},
        )
