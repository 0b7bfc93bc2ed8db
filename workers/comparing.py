"""How two versions' verdicts differ: on the same frames, from a trial on the line or from a folder of pictures."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from model_store import ModelKey, Version
from pipeline.data import Decision
from pipeline.errors import ConfigError
from pipeline.evaluation.figures import rank_correlation
from pipeline.settings import Settings
from workers import clients, messages, topics

_QUIET_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One frame and what either version said: verdict, score, threshold, p-value.

    Attributes:
        name: a frame id, or a picture's path.
    """

    name: str
    part_id: str | None
    a: tuple[Decision, float, float, float]
    b: tuple[Decision, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What came of a comparison.

    Attributes:
        frames: that both decided about.
        a_rejects_alone: frames that A rejects and B passes; `b_rejects_alone` the other way round.
        rank_correlation: Spearman's, of the scores; None where either's are all alike, or of fewer than 3 frames.
        examples: of frames that the two decide differently, the clearest first.
    """

    a: str
    b: str
    frames: int
    both_pass: int
    both_reject: int
    a_rejects_alone: int
    b_rejects_alone: int
    rank_correlation: float | None
    examples: tuple[dict[str, Any], ...]

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def compare(pairs: Iterable[Pair], a: Version, b: Version, *, examples: int) -> Difference:
    """Count where the versions agree, and take the clearest cases where they do not."""
    found = list(pairs)
    differing = [pair for pair in found if pair.a[0] != pair.b[0]]
    return Difference(
        a=a,
        b=b,
        frames=len(found),
        both_pass=sum(p.a[0] == p.b[0] == Decision.PASS for p in found),
        both_reject=sum(p.a[0] == p.b[0] == Decision.REJECT for p in found),
        a_rejects_alone=sum(p.a[0] == Decision.REJECT for p in differing),
        b_rejects_alone=sum(p.b[0] == Decision.REJECT for p in differing),
        rank_correlation=rank_correlation([p.a[1] for p in found], [p.b[1] for p in found]),
        examples=tuple(_example(p) for p in sorted(differing, key=_clearness, reverse=True)[:examples]),
    )


def from_trial(settings: Settings, key: ModelKey, a: Version, b: Version) -> Iterator[Pair]:
    """What the topic of shadows holds of these two versions, whichever of them decided; a frame's first entry counts.

    Raises:
        ConfigError: no broker answers, or it stops in between.
    """
    client = clients.tail(settings.kafka, topics.name(settings.kafka.prefix, "shadow"), from_start=True)
    ends = client.end_offsets(client.assignment())
    seen: set[str] = set()
    heard = time.monotonic()
    try:
        while any(client.position(tp) < end for tp, end in ends.items()):
            for record in clients.records(client):
                heard = time.monotonic()
                said = messages.decode_comparison(record.value)
                if said is None or (said.station, said.recipe) != (key.station, key.recipe) or said.frame_id in seen:
                    continue
                opinions = {said.active.model.version: said.active, said.shadow.model.version: said.shadow}
                if opinions.keys() == {a, b}:
                    seen.add(said.frame_id)
                    yield Pair(name=said.frame_id, part_id=said.part_id, a=_told(opinions[a]), b=_told(opinions[b]))
            if time.monotonic() - heard > _QUIET_S:
                raise ConfigError("the broker stopped answering in the middle of the topic of shadows; try again")
    finally:
        client.close()


def _told(opinion: messages.OpinionBody) -> tuple[Decision, float, float, float]:
    return opinion.verdict, opinion.score, opinion.threshold, opinion.p_value


def _clearness(pair: Pair) -> float:
    """How far the two are apart, each in units of its own threshold."""
    return abs(pair.a[1] / pair.a[2] - pair.b[1] / pair.b[2]) if pair.a[2] and pair.b[2] else float("inf")


def _example(pair: Pair) -> dict[str, Any]:
    sides = {
        side: {"verdict": told[0].value, "score": told[1], "threshold": told[2], "p_value": told[3]}
        for side, told in (("a", pair.a), ("b", pair.b))
    }
    return {"frame": pair.name, "part_id": pair.part_id, **sides}
